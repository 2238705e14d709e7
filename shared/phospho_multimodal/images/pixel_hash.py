"""The fingerprint of an image: a hash of its pixels, whatever file they came in."""

from __future__ import annotations

import hashlib

from phospho_multimodal.images.prepare import LinkedImage, SendableImage

__all__ = ["fingerprint"]


def fingerprint(image: SendableImage) -> str:
    """Hash the pixels of an image, or the string of a URL, which is not opened.

    Metadata and the file format make no difference.
    """
    if isinstance(image, LinkedImage):
        return f"url:{hashlib.sha256(image.url.encode()).hexdigest()}"
    from phospho_multimodal.images import decode  # noqa: PLC0415 - loads Pillow, so only now

    pixels = decode.to_rgb(decode.open_image(image.data)).convert("RGB")
    digest = hashlib.sha256(f"{pixels.width}x{pixels.height}:".encode())
    digest.update(pixels.tobytes())
    return f"pixels:{digest.hexdigest()}"
