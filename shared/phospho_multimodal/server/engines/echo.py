"""An engine for tests: its answer is what arrived, as one line of JSON."""

from __future__ import annotations

import hashlib
import json

from phospho_multimodal.server.engines import Picture, Question

__all__ = ["EchoEngine"]


class EchoEngine:
    """Answers with the question, the image's digest and the parameters, the same every time."""

    name = "echo"

    def describe(self, picture: Picture, question: Question) -> str:
        """Say what arrived.

        Args:
            picture: The image.
            question: The prompt, the model's name and the parameters.

        Returns:
            A JSON object: text, image_sha256, format, width, height, parameters, model.
        """
        arrived = {
            "text": question.text,
            "image_sha256": hashlib.sha256(picture.data).hexdigest(),
            "format": picture.format,
            "width": picture.width,
            "height": picture.height,
            "parameters": question.parameters.model_dump(exclude_none=True),
            "model": question.model,
        }
        return json.dumps(arrived, ensure_ascii=False)
