"""A local server that speaks the phospho API (`POST /v2/predict`). Only `cli` imports it."""

try:
    import fastapi as _fastapi  # noqa: F401 - whether it is installed
    import uvicorn as _uvicorn  # noqa: F401
except ModuleNotFoundError as missing:
    _message = (
        f"The local server needs {missing.name!r}, which is not installed:"
        ' pip install "phospho-multimodal[server]"'
    )
    raise ImportError(_message) from missing

from phospho_multimodal.server.app import create_app

__all__ = ["create_app"]
