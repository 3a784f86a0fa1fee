"""When a launch asks vLLM for the accepted drafts of each request."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from autotune.engine.acceptance import ACCEPTANCE_OPTION, without_acceptance
from autotune.engine.command import plan_launch, production
from autotune.engine.launched import launched
from autotune.engine.probe import UNKNOWN, VllmInfo
from autotune.study.schema import ServerSpec

LEVELS = ("detailed", "none", "summary")
INFO = VllmInfo(
    "0.32.0",
    "vllm",
    "/opt/venv/bin/python",
    "cuda",
    {"per_request_spec_decode_metrics": LEVELS, "max_num_seqs": None},
    (),
    (),
)
OLD = replace(INFO, version="0.28.0", options={"max_num_seqs": None})


def level(
    n: int,
    info: VllmInfo = INFO,
    *,
    acceptance: bool = True,
    flags: dict[str, object] | None = None,
    command: str | None = None,
) -> list[str]:
    """Every level that a launch has."""
    argv = plan_launch(
        spec(flags, command), {"num_speculative_tokens": n}, info, **LAUNCH, acceptance=acceptance
    ).argv
    return [b for a, b in itertools.pairwise(argv) if a == ACCEPTANCE_OPTION]


LAUNCH = {"port": 4321, "launch_id": "f00", "resolve": str}


def spec(flags: dict[str, object] | None = None, command: str | None = None) -> ServerSpec:
    draft = {"method": "dflash", "model": "org/draft"}
    body = {"model": "org/m", "speculative": draft, "flags": flags or {}, "command": command}
    return ServerSpec.model_validate(body)


def test_a_vllm_that_has_the_flag_is_asked_where_it_drafts() -> None:
    assert level(3) == ["detailed"]
    assert level(0) == []
    assert level(3, acceptance=False) == []


def test_a_vllm_without_the_flag_or_that_cannot_be_asked_is_not() -> None:
    assert level(3, OLD) == []
    assert level(3, UNKNOWN) == []


@pytest.mark.parametrize("given", ["summary", "none"])
def test_what_the_study_fixes_stays_and_is_dropped_at_n_0(given: str) -> None:
    flags = {"per-request-spec-decode-metrics": given}
    assert level(3, flags=flags) == [given]
    assert level(3, UNKNOWN, flags=flags) == [given]
    assert level(0, flags=flags) == level(0, UNKNOWN, flags=flags) == []


def test_words_of_the_command_stay_and_are_dropped_at_n_0() -> None:
    command = "python -m vllm.entrypoints.openai.api_server --seed 1"
    own = f"{command} {ACCEPTANCE_OPTION} summary --max-num-seqs 4"
    assert level(3, command=own) == ["summary"]
    point, bare = {"num_speculative_tokens": 0}, f"{command} --max-num-seqs 4"
    plans = [plan_launch(spec(command=c), point, INFO, **LAUNCH).argv for c in (own, bare)]
    assert plans[0] == plans[1]


def test_the_words_that_are_taken_out() -> None:
    option = ACCEPTANCE_OPTION
    assert without_acceptance(["a", option, "summary", "b"]) == ("a", "b")
    assert without_acceptance(["a", f"{option}=detailed", "b"]) == ("a", "b")
    assert without_acceptance(["--per_request_spec_decode_metrics", "none"]) == ()
    assert without_acceptance([option, "--seed", "1"]) == ("--seed", "1")
    assert without_acceptance(["serve", "--seed", "1"]) == ("serve", "--seed", "1")


def test_production_does_not_have_what_only_measuring_needs() -> None:
    point = {"num_speculative_tokens": 3}
    for flags, kept in (({}, False), ({"per_request_spec_decode_metrics": "summary"}, True)):
        server = spec(flags)
        plan = plan_launch(server, point, INFO, **LAUNCH, acceptance=True)
        words = launched(plan.argv, None)
        assert words is not None
        own = production(server, point, INFO, resolve=str)
        again = words.production(server, {}, {}, str)
        for p in (own, again):
            assert any(flag[0] == ACCEPTANCE_OPTION for flag in p.flags) is kept
        assert own.flags == again.flags
