"""Code in a process of its own, for what an import does and what is loaded after it."""

from __future__ import annotations

import subprocess
import sys


def in_fresh_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code with the interpreter of the tests.

    Args:
        code: What `python -c` gets.

    Returns:
        The finished process, whatever its exit code, with what it printed.
    """
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, check=False, text=True, timeout=60)  # noqa: S603 - our own code
