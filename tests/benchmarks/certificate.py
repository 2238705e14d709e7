"""A certificate of the run, which every client trusts by `SSL_CERT_FILE`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import trustme

__all__ = ["trusted_certificate"]


@contextmanager
def trusted_certificate() -> Iterator[Path]:
    """Make a certificate for 127.0.0.1, and have this process and its children trust it."""
    with TemporaryDirectory() as folder:
        authority = trustme.CA()
        trusted, served = Path(folder) / "ca.pem", Path(folder) / "server.pem"
        authority.cert_pem.write_to_path(str(trusted))
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_and_cert_chain_pem.write_to_path(str(served))
        os.environ["SSL_CERT_FILE"] = str(trusted)
        try:
            yield served
        finally:
            del os.environ["SSL_CERT_FILE"]
