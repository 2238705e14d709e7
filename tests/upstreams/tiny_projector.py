"""A projector of some 300 kB with random weights, which lets llama.cpp's text model take images."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

_SIDE, _PATCH, _WIDTH, _FEED_FORWARD, _HEADS, _LAYERS = 56, 14, 64, 128, 2, 2


def save_tiny_projector(path: Path, *, model_width: int) -> Path:
    """Write a LLaVA projector in llama.cpp's format.

    Args:
        path: The file.
        model_width: The width of the text model's embeddings.

    Returns:
        The same path.
    """
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_bool("clip.has_vision_encoder", val=True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", val=True)
    for name, value in {
        "image_size": _SIDE,
        "patch_size": _PATCH,
        "embedding_length": _WIDTH,
        "feed_forward_length": _FEED_FORWARD,
        "block_count": _LAYERS,
        "attention.head_count": _HEADS,
        "projection_dim": model_width,
    }.items():
        writer.add_uint32(f"clip.vision.{name}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    chance = np.random.default_rng(5)
    for name, shape in _shapes(model_width).items():
        values = chance.normal(0, 0.02, shape).astype(np.float32)
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes(model_width: int) -> dict[str, tuple[int, ...]]:
    patches = (_SIDE // _PATCH) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "v.patch_embd.weight": (_WIDTH, 3, _PATCH, _PATCH),
        "v.class_embd": (_WIDTH,),
        "v.position_embd.weight": (patches + 1, _WIDTH),
        "mm.0.weight": (model_width, _WIDTH),
        "mm.0.bias": (model_width,),
        "mm.2.weight": (model_width, model_width),
        "mm.2.bias": (model_width,),
    }
    norms = ["v.pre_ln", "v.post_ln"]
    for layer in range(_LAYERS):
        block = f"v.blk.{layer}"
        norms += [f"{block}.ln1", f"{block}.ln2"]
        widths = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_out"), (_WIDTH, _WIDTH))
        widths |= {"ffn_up": (_FEED_FORWARD, _WIDTH), "ffn_down": (_WIDTH, _FEED_FORWARD)}
        for part, shape in widths.items():
            shapes |= {f"{block}.{part}.weight": shape, f"{block}.{part}.bias": shape[:1]}
    for norm in norms:
        shapes |= {f"{norm}.weight": (_WIDTH,), f"{norm}.bias": (_WIDTH,)}
    return shapes
