"""A launch's argv taken apart: every part comes back as it was put together."""

from __future__ import annotations

import json
import sys

import pytest

from autotune.engine.command import plan_launch
from autotune.engine.launched import launched
from autotune.engine.probe import VllmInfo
from autotune.errors import UserError
from autotune.study.schema import ServerSpec
from autotune.study.space import MNBT, N, Point

INFO = VllmInfo("0.32.0", "vllm", sys.executable, "cuda", None, (), ())
POINT: Point = {N: 3, MNBT: 512}


def server(**given: object) -> ServerSpec:
    return ServerSpec.model_validate(
        {
            "model": "target",
            "speculative": {"method": "dflash", "model": "draft"},
            "flags": {
                "served-model-name": ["a b", "c"],
                "hf-overrides": {"rope": [1, None]},
                "enforce-eager": True,
                "chat-template": "-x",
            },
            **given,
        }
    )


def argv_of(spec: ServerSpec, point: Point = POINT) -> tuple[str, ...]:
    return plan_launch(
        spec, point, INFO, port=4242, launch_id="x", resolve=lambda ref: f"/models/{ref}"
    ).argv


def test_the_parts_are_the_whole() -> None:
    argv = argv_of(server())
    found = launched(argv, None)
    assert found is not None
    flags = [word for flag in found.flags for word in flag]
    whole = (*found.head, found.model, *found.rest, *flags)
    assert (*whole, "--host", "127.0.0.1", "--port", "4242") == argv
    assert (found.model, found.draft) == ("/models/target", "/models/draft")
    assert found.program == found.python == sys.executable
    assert ("--served-model-name", "a b", "c") in found.flags
    assert ("--chat-template=-x",) in found.flags
    base = launched(argv_of(server(), {N: 0, MNBT: 512}), None)
    assert base is not None
    assert base.draft is None


def test_words_after_serve_are_those_of_the_study() -> None:
    command = ["vllm", "serve", "-tp", "2", "--seed", "1"]
    argv = ["/opt/bin/vllm", "serve", "/m", *command[2:], "--max-num-batched-tokens", "512"]
    found = launched([*argv, "--host", "127.0.0.1", "--port", "1"], command)
    assert found is not None
    assert found.head == ("/opt/bin/vllm", "serve")
    assert found.rest == ("-tp", "2", "--seed", "1")
    assert found.flags == (("--max-num-batched-tokens", "512"),)
    assert found.python is None  # its console script says, on the machine that has it


@pytest.mark.parametrize(
    "argv", [[], ["x"], ["p", "--host", "h", "--port", "1"], ["p", "--model", "m", "--port", "1"]]
)
def test_another_argv_is_not_taken_apart(argv: list[str]) -> None:
    assert launched(argv, None) is None


def test_production_has_the_words_of_the_launch_and_no_others() -> None:
    spec = server(env={"VLLM_USE_V1": "1", "MY_PASSWORD": "***"})
    found = launched(argv_of(spec), None)
    assert found is not None
    kept = {
        "AUTOTUNE_LAUNCH": "x",
        "AUTOTUNE_HIDE": "torchvision",
        "PYTHONPATH": "/there/shim",
        "PATH": "/there/bin",
        "VLLM_API_KEY": "***",
    }
    own = {"OMP_NUM_THREADS": "4", "UCX_URL": "http://***@there"}
    p = found.production(spec, kept, own, lambda path: path.replace("/models", "/in"))
    assert p.model == p.head[-1] == "/in/target"
    config = json.loads(dict(f for f in p.flags if len(f) == 2)["--speculative-config"])
    assert config["model"] == "/in/draft"
    assert p.env == {
        "OMP_NUM_THREADS": "4",
        "UCX_URL": None,
        "VLLM_USE_V1": "1",
        "MY_PASSWORD": None,
    }
    assert p.hiding == {"PYTHONPATH": "/there/shim", "AUTOTUNE_HIDE": "torchvision"}
    with pytest.raises(UserError, match="control character"):
        found.production(spec, kept, {"OMP_NUM_THREADS": "4\x1b[31m"}, lambda path: path)
