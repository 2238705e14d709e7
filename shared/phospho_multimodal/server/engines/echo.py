"""An engine for tests: it answers with the request, as one line of JSON."""

from __future__ import annotations

import hashlib
import json

from phospho_multimodal.server.engines import InputImage, Question

__all__ = ["EchoEngine"]


class EchoEngine:
    """Answers with the prompt, the image's digest and the parameters."""

    name = "echo"

    def describe(self, image: InputImage, question: Question) -> str:
        """Return a JSON object: text, image_sha256, format, width, height, parameters, model."""
        request = {
            "text": question.text,
            "image_sha256": hashlib.sha256(image.data).hexdigest(),
            "format": image.format,
            "width": image.width,
            "height": image.height,
            "parameters": question.parameters.model_dump(exclude_none=True),
            "model": question.model,
        }
        return json.dumps(request, ensure_ascii=False)
