"""Does vLLM serve the shapes? Each one scaled down, on this machine, with random weights.

    python benchmarks/shapes_served.py --out benchmarks/data/shapes_served.json [NAME …]

For each shape, two layers of each kind that it has and its DFlash draft are written with the
tokenizer of `autotune shape`, and a real server is launched without drafts and with three of them
(verified: random weights accept what they accept). It must answer requests of random token ids, and
a chat, with as many tokens as were asked for. The result has what each launch answered, or why
vLLM did not serve it: some architectures and formats have no kernel for a CPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import yaml

from autotune.bench.sending import send
from autotune.bench.server_metrics import difference, scrape
from autotune.bench.workload import Request, build_workload
from autotune.engine.command import free_port, plan_launch
from autotune.engine.probe import VllmInfo, probe
from autotune.errors import AutotuneError, TrialFailure
from autotune.serving.machine import describe_machine
from autotune.serving.resolve import model_resolver
from autotune.serving.server import Server
from autotune.study.files import LoadedStudy, parse_study
from autotune.study.shapes import Shape, Written, shapes, write_shape
from autotune.study.space import MNBT, N

TOKENS = 12


def study_of(made: Written, folder: Path) -> LoadedStudy:
    """Return a study of a target and its draft, with two requests of random ids."""
    raw = {
        "name": "served",
        "server": {
            "model": str(made.target),
            "speculative": {"method": "dflash", "model": str(made.draft)},
            "flags": {
                "max-model-len": 512,
                "max-num-seqs": 2,
                "enforce-eager": True,
            },
            "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},
            "health_timeout_s": 300,
        },
        "rehearsal": {"weights": "dummy"},
        "space": {
            N: {"type": "choice", "choices": [0, 3]},
            MNBT: {"type": "choice", "choices": [512]},
        },
        "workload": {
            "random": {"input_len": 16},
            "output_len": TOKENS,
            "ignore_eos": True,
            "num_prompts": 2,
            "max_concurrency": 2,
        },
    }
    return parse_study(yaml.safe_dump(raw), folder / "served.yaml")


def launched(study: LoadedStudy, info: VllmInfo, n: int, log: Path) -> dict[str, Any]:
    """Return what one launch answered, or why it did not."""
    spec, launch_id = study.spec, uuid.uuid4().hex
    plan = plan_launch(
        spec.server,
        {N: n, MNBT: 512},
        info,
        port=free_port(),
        launch_id=launch_id,
        resolve=model_resolver(study, info),
    )
    server = Server(plan, launch_id=launch_id, log_path=log, server=spec.server, info=info)
    begun = time.monotonic()
    try:
        server.start()
        server.wait_ready(lambda _seconds: None)
        ready = time.monotonic() - begun
        chat = Request(9, None, [{"role": "user", "content": "Name the planets."}])
        requests = [*build_workload(spec.workload, study.base).measured, chat]
        before = scrape(plan.base_url, plan.api_key)
        sent = send(server, spec.workload, requests, [0.0] * 3, "measure", lambda _: None)
        counted = difference(before, scrape(plan.base_url, plan.api_key))
        return {
            "ready_s": round(ready, 1),
            "status": [s.status for s in sent],
            "prompt_tokens": [s.prompt_tokens for s in sent],
            "tokens": [s.output_tokens for s in sent],
            "drafted": counted.draft_tokens,
            "accepted": counted.accepted_tokens,
        }
    except (AutotuneError, TrialFailure) as e:
        return {"failed": f"{type(e).__name__}: {e}"[:600]}
    finally:
        server.stop()


def served(shape: Shape, quant: str, info: VllmInfo, folder: Path) -> dict[str, Any]:
    """Return the launches of a scaled-down shape, by n."""
    name = f"{shape.name}-{quant}"
    made = write_shape(shape, folder / name, quant=quant, tiny=True)
    study = study_of(made, folder)
    return {str(n): launched(study, info, n, folder / f"{name}-{n}.log") for n in (0, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="shapes; default: one of each architecture")
    parser.add_argument("--quants", default="bf16", help="formats, separated by commas")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; what it has is kept")
    options = parser.parse_args()
    alike = ("qwen3.6-27b", "qwen3.6-35b-a3b")  # the architectures of Qwen3.5
    names = options.names or [s.name for s in shapes() if s.name not in alike]
    found = json.loads(options.out.read_text()) if options.out.is_file() else {"launches": {}}
    with tempfile.TemporaryDirectory() as tmp:
        for shape in shapes():
            for quant in options.quants.split(","):
                if shape.name not in names or quant not in shape.quants:
                    continue
                info = probe(study_of(Written(Path("t"), Path("d")), Path(tmp)).spec.server)
                found |= {"vllm": info.version, "machine": describe_machine()}
                found["launches"][f"{shape.name} {quant}"] = served(shape, quant, info, Path(tmp))
                print(json.dumps(found["launches"][f"{shape.name} {quant}"]), flush=True)
                options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
