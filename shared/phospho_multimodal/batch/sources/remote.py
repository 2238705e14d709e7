"""Files in remote stores (S3, GCS, the Hugging Face Hub, web servers), opened with fsspec."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeAlias, cast

from phospho_multimodal.errors import ConfigurationError

__all__ = [
    "AnyPath",
    "RemoteFile",
    "StorageOptions",
    "failure_reason",
    "import_fsspec",
    "is_store_url",
    "is_url",
    "open_url",
    "shown_url",
]

StorageOptions: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Options of fsspec's file systems, by protocol: `{"s3": {"anon": True}}`."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_STORES = frozenset({"s3", "s3a", "gs", "gcs", "hf", "az", "abfs", "abfss", "adl", "oss", "oci"})


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file or folder of a remote store; its content is downloaded when it is read."""

    filesystem: Any = field(repr=False)
    path: str
    size: int | None = None

    def __str__(self) -> str:
        return shown_url(str(self.filesystem.unstrip_protocol(self.path)))

    def __truediv__(self, below: str) -> RemoteFile:
        return RemoteFile(
            self.filesystem, f"{self.path.rstrip('/')}/{below}" if below else self.path
        )

    @property
    def name(self) -> str:
        """The part of the path after the last slash."""
        is_web = "://" in self.path  # and may have a query; the paths of stores have no scheme
        path = self.path.partition("?")[0] if is_web else self.path
        return path.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> RemoteFile:
        """The folder that holds this file."""
        return RemoteFile(self.filesystem, self.path.rstrip("/").rpartition("/")[0])

    def with_suffix(self, suffix: str) -> RemoteFile:
        """Return the file with another suffix in the same folder."""
        return self.parent / str(PurePosixPath(self.name).with_suffix(suffix))

    def open(self, mode: str = "rb") -> IO[bytes]:
        """Open it."""
        return cast("IO[bytes]", self._call("open", self.path, mode))

    def read(self, size: int = -1) -> bytes:
        """Download it in one request, or its first bytes if it is known to be larger."""
        is_larger = 0 <= size < (self.size or 0)
        return bytes(self._call("cat_file", self.path, *((0, size) if is_larger else ())))

    def read_bytes(self) -> bytes:
        """Download it."""
        return self.read()

    def write_bytes(self, content: bytes) -> None:
        """Upload it."""
        self._call("pipe_file", self.path, content)

    def upload(self, file: Path) -> None:
        """Upload a local file to it."""
        self._call("put_file", str(file), self.path)

    def exists(self) -> bool:
        """Return whether there is such a file."""
        self.filesystem.invalidate_cache()
        return bool(self._call("exists", self.path))

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove it."""
        if not missing_ok or self.exists():
            self._call("rm_file", self.path)

    def list(self) -> list[dict[str, Any]]:
        """List the files and folders in it."""
        self.filesystem.invalidate_cache()
        return [dict(info) for info in self._call("ls", self.path, detail=True)]

    def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call the file system, and raise all of its errors as `OSError`."""
        try:
            return getattr(self.filesystem, name)(*arguments, **options)
        except OSError:
            raise
        except Exception as failure:
            raise OSError(failure_reason(failure)) from failure

    @staticmethod
    def seekable() -> bool:
        """Tell that reading it costs a download, so that nobody reads it to compute a digest."""
        return False


AnyPath: TypeAlias = "Path | RemoteFile"


def import_fsspec() -> Any:
    """Import fsspec, which belongs to an extra."""
    try:
        import fsspec  # noqa: PLC0415 - an extra
        import fsspec.utils  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        message = (
            f"A batch needs {missing.name!r}, which is not installed:"
            ' pip install "phospho-multimodal[batch]"'
        )
        raise ImportError(message) from missing
    return fsspec


def is_url(text: str) -> bool:
    """Return whether a text names a place on another machine, and not a path."""
    return _URL.match(text) is not None


def is_store_url(text: str) -> bool:
    """Return whether a text is the URL of an object in a store, which fsspec downloads."""
    found = _URL.match(text)
    return found is not None and found[1].lower() in _STORES


def open_url(url: str, storage_options: StorageOptions | None = None) -> RemoteFile:
    """Find the file system of a URL; nothing is read yet."""
    fsspec = import_fsspec()
    protocol = url.partition("://")[0].lower()
    options = dict((storage_options or {}).get(protocol, {}))
    try:
        filesystem, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as missing:  # it says which package to install
        message = f"{shown_url(url)} cannot be opened: {missing}. Nothing was sent."
        raise ImportError(message) from missing
    except Exception as failure:  # noqa: BLE001 - each store raises classes of its own
        message = f"{shown_url(url)} cannot be opened: {failure_reason(failure)}. Nothing was sent."
        raise ConfigurationError(message) from None
    return RemoteFile(filesystem, str(path))


def shown_url(url: str) -> str:
    """Return a URL without its user, password and query, which may be secret."""
    scheme, found, rest = url.partition("://")
    if not found:
        return url
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


def failure_reason(failure: BaseException) -> str:
    """Say in one line why a file cannot be read or written."""
    strerror = failure.strerror if isinstance(failure, OSError) else None
    return (strerror or str(failure) or type(failure).__name__).split("\n", 1)[0].rstrip(".")
