"""What the installed vLLM's parser makes of command lines. A script, run in vLLM's own process.

It reads a JSON list of ``[words, n0, n3]`` from stdin: the arguments of a command as it was found,
and those that a study launches for n = 0 and n = 3 (None: it has no draft). It answers, for each,
with the parser's errors and with the settings that differ between the command and n = 0.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

_DRAFTS = ("speculative_config", "spec_method", "spec_model", "spec_tokens")


def main() -> None:
    """Answer with a JSON list on stdout; what vLLM prints goes to stderr."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path.append(str(Path(__file__).parents[1]))  # vLLM's Python may not have autotune
    from vllm.config import SpeculativeConfig

    from autotune.engine._probe import server_parser

    keys = {f.name for f in dataclasses.fields(SpeculativeConfig)}
    parser = server_parser(prog="vllm serve")

    def parsed(words: list[str] | None) -> tuple[str, dict[str, Any]]:
        """Return the parser's error (empty: none) and the settings."""
        if words is None:
            return "", {}
        heard = io.StringIO()
        try:
            with contextlib.redirect_stderr(heard):
                return "", vars(parser.parse_args(list(words)))
        except SystemExit:
            said = heard.getvalue().partition(" error: ")[2]
            return re.sub(r"0x[0-9a-f]+", "0x…", " ".join(said.split()))[:200], {}
        except Exception as e:  # noqa: BLE001 – whatever it is, the command line is refused
            return " ".join(f"{type(e).__name__}: {e}".split())[:200], {}

    def shown(value: object) -> str:
        """Return a setting without the id that vLLM draws for each engine."""
        return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "", repr(value))

    out = []
    for words, n0, n3 in json.load(sys.stdin):
        found, before = parsed(words)
        first, settings = parsed(n0)
        second, drafting = parsed(n3)
        spec = drafting.get("speculative_config")
        out.append(
            {
                "found": found,
                "n0": first,
                "n3": second,
                "drafts": [k for k in _DRAFTS if settings.get(k) is not None],
                "unknown": sorted({*(spec or {})} - keys),
                "differ": sorted(
                    k for k in before if first == "" and shown(before[k]) != shown(settings.get(k))
                ),
            }
        )
    answer.write(json.dumps(out))
    answer.flush()


if __name__ == "__main__":
    main()
