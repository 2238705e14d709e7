"""The digest of a file, read in pieces: it may be larger than memory should hold."""

from __future__ import annotations

import hashlib
from typing import IO

__all__ = ["digest_file"]

_PIECE = 1 << 20


def digest_file(file: IO[bytes]) -> tuple[int, str]:
    """Digest the rest of a file.

    (`hashlib.file_digest` does it from Python 3.11 on.)
    """
    digest = hashlib.sha256()
    size = 0
    while piece := file.read(_PIECE):
        digest.update(piece)
        size += len(piece)
    return size, digest.hexdigest()
