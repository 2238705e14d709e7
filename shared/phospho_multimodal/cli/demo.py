"""The demo: a local server, and one prompt through each framework.

This is the only module of the core that imports the adapters, because it shows them.
"""

import base64
import mimetypes
import secrets
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

from langchain_core.messages import HumanMessage
from llama_index.core.base.llms.types import ImageBlock
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from langchain_phospho import ChatPhospho
from llama_index_phospho import PhosphoMultiModal
from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines import Engine, load_engine, state
from phospho_multimodal.server.engines.discovery import choose_engine
from phospho_multimodal.server.run import in_background

_PHOTO = "demo_photo.jpg"  # "Chelsea" by Stéfan van der Walt, CC0
_LOAD_SECONDS = 600.0  # for a server that loads its model

__all__ = ["PROMPT", "RECEIPT", "draw_receipt", "run"]

PROMPT = "What does this image say?"
"""The prompt about the receipt, and about an image of the user's."""

PHOTO_PROMPT = "Describe this photograph in two sentences."

RECEIPT = (
    ("CORNER BAKERY", ""),
    ("12 March 2026", ""),
    ("2 Croissant", "3.20"),
    ("1 Coffee", "2.80"),
    ("Total", "6.00"),
    ("Thank you", ""),
)
"""The text of the demo's image: its left and its right column."""


def run(image: Path | None, console: Console) -> None:
    """Send a prompt about an image through both frameworks, and print both responses.

    Args:
        image: The user's image. Default: a photograph for a vision model, a receipt for OCR.
        console: Where to print.

    Raises:
        ConfigurationError: The model that was found is not loaded in time.
    """
    choice = choose_engine()
    for line in choice.notice:
        console.print(Text(line, overflow="fold"))
    engine = load_engine(choice.engine, **choice.options)
    # A new key, so that the key of the environment is not sent to this server.
    api_key = secrets.token_urlsafe()
    server = create_app(engine, api_key=api_key)
    with tempfile.TemporaryDirectory() as folder, in_background(server) as base_url:
        _wait_until_loaded(engine, console)
        image_path, prompt = _choose_image(image, choice.engine, Path(folder))
        console.print(Text(f"Serving {base_url}. Prompt: {prompt}", overflow="fold"))
        title = "LangChain: ChatPhospho"
        _show(console, title, *_ask_langchain(image_path, prompt, base_url, api_key))
        title = "LlamaIndex: PhosphoMultiModal"
        _show(console, title, *_ask_llama_index(image_path, prompt, base_url, api_key))
    console.print("Costs are the hosted endpoint's list price. This server billed nothing.")
    console.print("It has stopped.")


def _wait_until_loaded(engine: Engine, console: Console) -> None:
    deadline = time.monotonic() + _LOAD_SECONDS
    if state(engine) != "ok":
        console.print("Waiting until the model is loaded.")
    while state(engine) != "ok":
        if time.monotonic() > deadline:
            message = f"The model was not loaded within {_LOAD_SECONDS:.0f} s. Nothing was sent."
            raise ConfigurationError(message)
        time.sleep(0.1)


def _choose_image(image: Path | None, engine: str, folder: Path) -> tuple[Path, str]:
    """Choose image and prompt: OCR reads a receipt, a vision model describes a photograph."""
    if image is not None:
        return image, PROMPT if engine == "ocr" else PHOTO_PROMPT
    if engine == "ocr":
        return draw_receipt(folder / "receipt.png"), PROMPT
    photo = folder / "photo.jpg"
    photo.write_bytes(resources.files("phospho_multimodal.cli").joinpath(_PHOTO).read_bytes())
    return photo, PHOTO_PROMPT


def draw_receipt(path: Path) -> Path:
    """Draw the demo's receipt into a file, and return its path."""
    image = Image.new("RGB", (520, 60 + 60 * len(RECEIPT)), "white")
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=28)
    for row, (left, right) in enumerate(RECEIPT):
        top = 30 + 60 * row
        pen.text((30, top), left, fill="black", font=font)
        pen.text((400, top), right, fill="black", font=font)
    image.save(path)
    return path


def _ask_langchain(
    image_path: Path, prompt: str, base_url: str, api_key: str
) -> tuple[str, dict[str, Any]]:
    kind = mimetypes.guess_type(image_path)[0] or "image/png"
    data = base64.b64encode(image_path.read_bytes()).decode()
    message = HumanMessage(
        content=[
            {"type": "text", "text": prompt},
            {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}},
        ]
    )
    answer = ChatPhospho(base_url=base_url, api_key=api_key).invoke([message])
    return str(answer.content), answer.response_metadata


def _ask_llama_index(
    image_path: Path, prompt: str, base_url: str, api_key: str
) -> tuple[str, dict[str, Any]]:
    llm = PhosphoMultiModal(base_url=base_url, api_key=api_key)
    answer = llm.complete(prompt, image_documents=[ImageBlock(path=image_path)])
    return answer.text, dict(answer.raw or {})


def _show(console: Console, title: str, answer: str, metadata: dict[str, Any]) -> None:
    console.print(Panel(Text(answer), title=title))
    console.print_json(data=metadata, default=str)
