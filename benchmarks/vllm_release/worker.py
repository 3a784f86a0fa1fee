"""Ask one vLLM's own code what its server accepts. A script, run in its own process.

It reads a JSON object from stdin: ``source``, ``version``, ``platform``, ``gpu``, ``models``, as
`benchmarks/vllm_rules_worker.py` does, whose stand-ins it uses. It answers with JSON on stdout:

- ``flags``: the table of flags, as `benchmarks/vllm_flags.py` writes it;
- ``options``: what autotune's probe reads of the parser: choices by option;
- ``spec``: keys of ``--speculative-config`` with their defaults, the words of those that take only
  some, and the methods;
- ``defaults``: MNBT, max_num_seqs and the most requests at once, of settings that leave them out;
- ``metrics``: the page ``/metrics`` of a server that drafts and has served nothing.

A part that this vLLM does not answer is a list with one text: why.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_GIB = 1 << 30
_DRAFT = {"speculative.method": "dflash", "speculative.model": "dflash"}
_CASES: dict[str, dict[str, Any]] = {
    "no draft": {},
    "n = 7 (dflash)": {**_DRAFT, "num_speculative_tokens": 7},
    "performance_mode: throughput": {"performance_mode": "throughput"},
}


def _words(hint: Any) -> list[str]:
    """Return the texts that an annotation allows; none: it allows any value."""
    import typing

    if typing.get_origin(hint) is typing.Literal:
        return [x for x in typing.get_args(hint) if isinstance(x, str)]
    return [word for part in typing.get_args(hint) for word in _words(part)]


def speculative() -> dict[str, Any]:
    """Return keys, words and methods of ``--speculative-config``."""
    import dataclasses
    import typing

    from vllm.config import SpeculativeConfig

    hints = typing.get_type_hints(SpeculativeConfig, include_extras=False)
    keys, words = {}, {}
    for field in dataclasses.fields(SpeculativeConfig):
        default = field.default
        keys[field.name] = repr(default) if isinstance(default, (int, float, str)) else None
        if found := _words(hints.get(field.name)):
            words[field.name] = sorted(set(found))
    return {"keys": keys, "words": words, "methods": words.pop("method", [])}


def defaults(asker: Any, platform: str, gpu: dict[str, Any]) -> dict[str, Any]:
    """Return MNBT, max_num_seqs and the most requests at once, by case.

    Args:
        asker: One vLLM that is asked.
        platform: ``cpu`` or ``cuda``.
        gpu: The GPU that vLLM sees, whose memory is changed here.
    """
    out: dict[str, Any] = {}
    for gib in (24, 80, 180) if platform == "cuda" else (0,):
        gpu["memory"] = gib * _GIB
        for name, settings in _CASES.items():
            case = f"GPU of {gib} GiB, {name}" if gib else f"CPU, {name}"
            try:
                batch = asker.config({"model": "target", **settings}).scheduler_config
            except (Exception, SystemExit) as e:  # noqa: BLE001 – each is an answer
                out[case] = " ".join(str(e).split())[:200]
                continue
            active = getattr(batch, "max_num_active_seqs", None)
            out[case] = [batch.max_num_batched_tokens, batch.max_num_seqs, active]
    return out


def metrics(asker: Any) -> str:
    """Return the page of a server that drafts and has served nothing."""
    import prometheus_client
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    config = asker.config({"model": "target", **_DRAFT, "num_speculative_tokens": 3})
    PrometheusStatLogger(config)
    return str(prometheus_client.generate_latest().decode())


def parts(asked: Mapping[str, Any], folder: Path) -> dict[str, Callable[[], Any]]:
    """Return what is asked, by name."""
    from autotune.engine import _probe
    from benchmarks import vllm_flags
    from benchmarks.vllm_rules_worker import Asker

    models = {}
    for i, (name, config) in enumerate(asked["models"].items()):
        (folder / f"m{i}").mkdir()
        (folder / f"m{i}" / "config.json").write_text(json.dumps(config), encoding="utf-8")
        models[name] = str(folder / f"m{i}")
    platform = asked["platform"]
    found: dict[str, Callable[[], Any]] = {
        "defaults": lambda: defaults(Asker(models), platform, asked["gpu"]),
    }
    if platform == "cpu":
        found |= {
            "flags": vllm_flags.flags,
            "options": lambda: _probe.full()["options"],
            "spec": speculative,
            "metrics": lambda: metrics(Asker(models)),
        }
    return found


def main() -> None:
    """Answer on stdout; what vLLM prints goes to stderr."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path[0] = str(_ROOT)  # the modules of this file's folder are not top-level ones
    from benchmarks.vllm_rules_worker import stand_in

    asked = json.load(sys.stdin)
    stand_in(asked["source"], asked["version"], asked["platform"], asked["gpu"])
    import vllm

    if not Path(str(vllm.__file__)).is_relative_to(asked["source"]):
        sys.exit(f"{asked['source']} has no package vllm that Python imports")
    folder = Path(tempfile.mkdtemp(prefix="configs-"))
    out: dict[str, Any] = {}
    for name, part in parts(asked, folder).items():
        try:
            out[name] = part()
        except (Exception, SystemExit) as e:  # noqa: BLE001 – each is an answer
            out[name] = [" ".join(f"{type(e).__name__}: {e}".split())[:300]]
    answer.write(json.dumps(out))
    answer.flush()
    os._exit(0)  # threads of vLLM's imports


if __name__ == "__main__":
    main()
