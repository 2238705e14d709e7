"""WebP in three quarters of the memory: Pillow works on the bytes that libwebp hands over."""

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
    """A WebP file whose frame is not copied once more after it was decoded."""

    def __init__(self, data: bytes) -> None:
        """Read the header; libwebp's canvases take no memory before a frame is decoded."""
        self._data = data
        super().__init__(io.BytesIO(data))

    def load_prepare(self) -> None:
        """Stop Pillow before it allocates an image: the frame is decoded by now."""
        frame = self.fp
        if isinstance(frame, io.BytesIO):
            raise _FrameError(frame.getvalue())
        super().load_prepare()

    def decoded(self) -> Image.Image:
        """Decode the first frame with a reader of its own, whose canvases end with it."""
        try:
            LeanWebP(self._data).load()
        except _FrameError as frame:
            mode = "RGBX" if self.mode == "RGB" else self.mode
            image = Image.frombuffer(mode, self.size, frame.pixels, "raw", mode, 0, 1)
            image.info = dict(self.info)
            return image
        return self
