"""Write the table of vLLM's flags that `autotune init` reads a command with.

    python -m benchmarks.vllm_flags [--out FILE.json]

It asks the parser of the vLLM of this environment and writes the package's own table,
``autotune/study/vllm_flags.json``: a flag a line, so that a newer vLLM shows as a readable
difference. ``tests/study/test_vllm_flags.py`` compares the table with the installed vLLM.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autotune.engine._probe import server_parser
from autotune.engine.entry import hiding, server_environment
from autotune.engine.probe import probe
from autotune.study.schema import ServerSpec

TABLE = Path(__file__).parents[1] / "autotune" / "study" / "vllm_flags.json"


def _reads(convert: Any, text: str) -> Any:
    """Return what a flag's type makes of a text; None: it refuses the text."""
    if convert is None:
        return text
    with contextlib.suppress(Exception):
        return convert(text)
    return None


def entry(action: argparse.Action, names: Sequence[str]) -> dict[str, Any]:
    """Return what the table says of one flag.

    Args:
        action: The flag.
        names: Its spellings, also those that the action does not show.
    """
    takes = {0: "none", None: "one", "?": "maybe"}.get(action.nargs, "some")
    out: dict[str, Any] = {"names": list(names), "takes": takes}
    if takes != "none":
        # a text stays as it is written: 1.10 is a name, not the number 1.1
        out["text"] = _reads(action.type, "1.10") == "1.10"
        mapping = _reads(action.type, "{}")
        out["mapping"] = mapping is not None and not isinstance(mapping, str)
        out["repeats"] = type(action).__name__ == "_AppendAction"
    return {k: v for k, v in out.items() if v is not False}


def flags() -> dict[str, Any]:
    """Return version and flags of the vLLM that runs this."""
    import vllm

    parser = server_parser()
    names: dict[int, list[str]] = {}
    for name, action in parser._option_string_actions.items():
        names.setdefault(id(action), []).append(name)
    actions = [a for a in parser._actions if a.option_strings and a.dest != "help"]
    found = [entry(a, names[id(a)]) for a in actions]
    return {"vllm": vllm.__version__, "flags": sorted(found, key=lambda f: f["names"])}


def ask() -> dict[str, Any]:
    """Return :func:`flags`, asked in a process in which the installed vLLM can be imported."""
    server = ServerSpec(model="m")
    info = probe(server)
    env, _ = server_environment(server, info.python)
    done = subprocess.run(
        [info.python or sys.executable, "-m", "benchmarks.vllm_flags", "--print"],
        env={**env, **hiding(info.hidden, env)},
        cwd=TABLE.parents[2],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def written(table: dict[str, Any]) -> str:
    """Return the text of the table's file."""
    lines = ",\n".join(f"    {json.dumps(flag)}" for flag in table["flags"])
    return f'{{\n  "vllm": {json.dumps(table["vllm"])},\n  "flags": [\n{lines}\n  ]\n}}\n'


def main(argv: Sequence[str] | None = None) -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=TABLE)
    parser.add_argument("--print", action="store_true", help="print the answer of this Python")
    args = parser.parse_args(argv)
    if args.print:
        print(json.dumps(flags()))
        return
    args.out.write_text(written(ask()), encoding="utf-8")


if __name__ == "__main__":
    main()
