"""Requests made up from the server's own OpenAPI document, over a real socket.

    python tests/fuzz/fuzz_server.py --examples 2000 --seed 1

Ends with 0 if every answer is one that the document declares, with a body of the declared form,
and holds to the contract besides: a 5xx only for a number of inputs other than one, nothing of
the request repeated in a refusal, no answer later than two seconds.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import tempfile
from typing import Any

import schemathesis
from schemathesis.cli import schemathesis as command_line

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from live_server import serve
from phospho_multimodal.contract import PredictInput
from phospho_multimodal.server import create_app
from phospho_multimodal.server.engines.echo import EchoEngine
from phospho_multimodal.server.run import TimeoutProtocol

KEY = "fuzz-key"

# What cannot hold: a schema cannot say "the base64 of an image", so made-up requests that fit it
# are refused; two inputs are the contract's 500; no Authorization is its 403, not a 401.
NOT_APPLICABLE = "positive_data_acceptance,not_a_server_error,missing_required_header"

FAILED = {"detail": "An error occurred while generating predictions."}
SHORT = 12  # characters; a shorter text may stand in a message by chance


@schemathesis.check
def the_contract_holds(
    context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """Look at one answer as the contract does."""
    status = response.status_code
    if status >= 500:
        assert status == 500, f"a {status}, and the server had nothing else to do"
        assert response.json() == FAILED
        assert len(case.body["inputs"]) != 1
    if status >= 400:
        repeated = [text for text in texts(case.body) if text in response.text]
        assert not repeated, f"the answer repeats {repeated}"
    assert response.elapsed < 2, f"the answer took {response.elapsed:.1f} s"


def texts(value: Any) -> list[str]:
    """Find every text in a body that is long enough to be recognised in an answer."""
    if isinstance(value, dict):
        return [text for item in value.values() for text in texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in texts(item)]
    known = not isinstance(value, str) or len(value) < SHORT or value in PredictInput.model_fields
    return [] if known else [value]


def main() -> int:
    """Run the fuzzer and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=200, help="the most for each operation")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    app = create_app(EchoEngine(), api_key=KEY)
    with serve(app, http=TimeoutProtocol) as base_url, tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # it leaves its failures where it stands
        arguments = ["run", f"{base_url}/openapi.json", "-H", f"Authorization: Bearer {KEY}"]
        arguments += ["--max-examples", str(options.examples), "--seed", str(options.seed)]
        arguments += ["--checks", "all", "--exclude-checks", NOT_APPLICABLE]
        arguments += ["--phases", "examples,coverage,fuzzing", "--request-timeout", "10"]
        arguments += [
            "--generation-database",
            "none",
            "--continue-on-failure",
            "--no-color",
            "--warnings",
            "off",
        ]
        try:
            command_line.main(arguments, prog_name="schemathesis")
        except SystemExit as end:
            return int(end.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
