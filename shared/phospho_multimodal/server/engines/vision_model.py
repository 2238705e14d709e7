"""A vision-language model of the `transformers` library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

try:
    import torch
    from safetensors import safe_open
    from transformers import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoConfig,
        AutoModelForImageTextToText,
        AutoProcessor,
        StoppingCriteriaList,
    )
except ModuleNotFoundError as missing:
    _message = (
        f"The engine 'transformers' needs {missing.name!r}, which is not installed:"
        ' pip install "phospho-multimodal[transformers]"'
    )
    raise ImportError(_message) from missing

from phospho_multimodal.contract import (
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_REPETITION_PENALTY,
    DEFAULT_TOP_P,
    MAX_NEW_TOKENS,
)
from phospho_multimodal.errors import ConfigurationError
from phospho_multimodal.server.engines import EngineFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phospho_multimodal.contract import GenerationParameters
    from phospho_multimodal.server.engines.batches import Answer, PendingQuestion

__all__ = ["DEVICES", "DTYPES", "VisionModel"]

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16", "float16")

_INDEX = "model.safetensors.index.json"
_EMPTY = "The model's answer is empty: its first token ended it."
_LONGEST_REASON = 300  # characters of an error of the library


class VisionModel:
    """A model's folder, or its name on the hub; its weights are loaded later."""

    def __init__(self, name: str, *, device: str, dtype: str) -> None:
        """Check the model without reading its weights.

        Args:
            name: A folder, or a name on the model hub.
            device: One of `DEVICES`; `auto` is the GPU if there is one.
            dtype: One of `DTYPES`; `auto` is the model's own on a GPU, and float32 on a CPU, where
                the shorter ones are slower.

        Raises:
            ConfigurationError: It is not a vision model with a chat template, or it is broken.
        """
        if device == "cuda" and not torch.cuda.is_available():
            message = "PyTorch finds no GPU, so --device cuda is impossible. Use --device cpu."
            raise ConfigurationError(message)
        self._name = name
        self._device = device if device != "auto" else _best_device()
        self._dtype = "float32" if dtype == "auto" and self._device == "cpu" else dtype
        folder = Path(name).expanduser()
        if folder.is_dir():
            self._source = str(folder)
            self._check_weights(folder)
        elif folder.is_absolute() or name.startswith((".", "~")):
            self._refuse("there is no such folder")
        else:
            self._source = name
        self._processor = self._load_processor()

    def load(self) -> Answer:
        """Read the weights; a ConfigurationError if some are broken or missing.

        Returns:
            The function that answers a batch.
        """
        try:
            model, info = AutoModelForImageTextToText.from_pretrained(
                self._source,
                dtype=self._dtype,
                use_safetensors=True,  # the other format can run code
                output_loading_info=True,
            )
            model = model.to(self._device).eval()
        except Exception as failure:  # noqa: BLE001 - its readers raise many classes
            self._refuse(_reason(failure), failure)
        # The library would use random numbers for missing weights.
        if lost := sorted(info["missing_keys"]):
            count = len(lost)
            self._refuse(
                f"{count} of its weights are missing from its files, for example {lost[0]}"
            )
        return _Loaded(model, self._processor).answer

    def _check_weights(self, folder: Path) -> None:
        """Look for truncated and missing files; the head of a file has its length."""
        if not (folder / "config.json").is_file():
            self._refuse("it has no config.json")
        names = {path.name for path in folder.glob("*.safetensors")}
        try:
            if (folder / _INDEX).is_file():
                index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
                names = set(index["weight_map"].values())
            for name in sorted(names):
                with safe_open(folder / name, framework="pt"):
                    pass
        except Exception as failure:  # noqa: BLE001 - its readers raise many classes
            self._refuse(f"its weights cannot be read: {_reason(failure)}", failure)
        if not names:
            self._refuse("it has no weights in a *.safetensors file")

    def _load_processor(self) -> Any:
        try:
            config = AutoConfig.from_pretrained(self._source)
            known = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
            processor = AutoProcessor.from_pretrained(self._source) if known else None
        except Exception as failure:  # noqa: BLE001 - its readers raise many classes
            self._refuse(_reason(failure), failure)
        if not known:
            self._refuse(f"{config.model_type!r} is not a model that takes images and text")
        tokenizer = getattr(processor, "tokenizer", None)
        if tokenizer is None or not hasattr(processor, "image_processor"):
            self._refuse("its processor takes no images: a processor's file is missing")
        if not (getattr(processor, "chat_template", None) or tokenizer.chat_template):
            self._refuse("it has no chat template")
        tokenizer.padding_side = "left"  # so that each answer begins where the prompts end
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return processor

    def _refuse(self, reason: str, cause: Exception | None = None) -> NoReturn:
        message = (
            f"The model {self._name!r} cannot be used: {reason}. Give --model the folder of a"
            " vision-language model with a chat template, or its name on the model hub."
        )
        raise ConfigurationError(message) from cause


class _Loaded:
    """A loaded model and its processor, for one thread."""

    def __init__(self, model: Any, processor: Any) -> None:
        self._model = model
        self._processor = processor

    def answer(self, batch: Sequence[PendingQuestion]) -> list[str | Exception]:
        """Answer requests with equal parameters."""
        inputs = self._processor.apply_chat_template(
            [_conversation(pending) for pending in batch],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            # The text "<image>" in a prompt is not another image.
            sanitize_control_tokens=True,
            processor_kwargs={"padding": True},
        ).to(self._model.device, dtype=self._model.dtype)
        prompt = inputs["input_ids"]

        def left(tokens: Any, _scores: Any) -> Any:
            gone = [pending.gone.is_set() for pending in batch]
            return torch.tensor(gone, device=tokens.device)

        with torch.inference_mode():
            tokens = self._model.generate(
                **inputs,
                **_generation(batch[0].parameters),
                pad_token_id=self._processor.tokenizer.pad_token_id,
                stopping_criteria=StoppingCriteriaList([left]),
            )
        answers = self._processor.batch_decode(
            tokens[:, prompt.shape[1] :], skip_special_tokens=True
        )
        return [answer.strip() or EngineFailed(_EMPTY) for answer in answers]


def _conversation(pending: PendingQuestion) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": pending.image}, {"type": "text", "text": pending.text}]
    return [{"role": "user", "content": content}]


def _generation(parameters: GenerationParameters) -> dict[str, Any]:
    """Translate the parameters into arguments of `generate`.

    `do_sample` is always set, because a model's own file may turn sampling on. Without a
    temperature, the answer is the most likely one.
    """
    penalty = parameters.repetition_penalty
    options: dict[str, Any] = {
        "max_new_tokens": min(parameters.max_new_tokens or DEFAULT_MAX_NEW_TOKENS, MAX_NEW_TOKENS),
        "repetition_penalty": DEFAULT_REPETITION_PENALTY if penalty is None else penalty,
        "do_sample": parameters.temperature is not None or parameters.top_p is not None,
        "num_beams": 1,
    }
    if options["do_sample"]:
        options["temperature"] = 1.0 if parameters.temperature is None else parameters.temperature
        options["top_p"] = DEFAULT_TOP_P if parameters.top_p is None else parameters.top_p
        options["top_k"] = 0  # the phospho API has no top_k
    return options


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _reason(failure: Exception) -> str:
    text = next((line.strip() for line in str(failure).splitlines() if line.strip()), "")
    return f"{type(failure).__name__}: {text[:_LONGEST_REASON].rstrip('.')}"
