"""`transformers serve` with the tiny LLaVA; run with the Python that has transformers."""

from __future__ import annotations

import sys
from pathlib import Path

from tiny_llava import save_tiny_llava
from transformers.cli.transformers import main

if __name__ == "__main__":
    folder, port = sys.argv[1:]
    save_tiny_llava(Path(folder))
    sys.argv = ["transformers", "serve", folder, "--port", port]
    main()
