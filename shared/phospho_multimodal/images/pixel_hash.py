"""What tells one picture from another: its pixels, whatever file they came in."""

from __future__ import annotations

import hashlib

from phospho_multimodal.images.prepare import LinkedImage, SendableImage

__all__ = ["fingerprint"]


def fingerprint(image: SendableImage) -> str:
    """Name a picture by what can be seen.

    The same pixels are the same picture: what else is in the file, and whether it had to be written
    anew, makes no difference.
    """
    if isinstance(image, LinkedImage):
        return f"url:{hashlib.sha256(image.url.encode()).hexdigest()}"
    from phospho_multimodal.images import decode  # noqa: PLC0415 - loads Pillow, so only now

    picture = decode.to_rgb(decode.open_image(image.data)).convert("RGB")
    digest = hashlib.sha256(f"{picture.width}x{picture.height}:".encode())
    digest.update(picture.tobytes())
    return f"pixels:{digest.hexdigest()}"
