"""What a study must not set: the same line wherever it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from autotune.errors import UserError
from autotune.study.files import parse_study
from autotune.study.space import MNBT, N

SPACE = {
    N: {"type": "int", "low": 0, "high": 3},
    MNBT: {"type": "pow2", "low": 512, "high": 1024},
}


def read(
    server: dict[str, Any],
    space: dict[str, Any] | None = None,
    *,
    whole: dict[str, Any] | None = None,
    rehearsal: dict[str, Any] | None = None,
    **options: bool,
) -> None:
    body = {
        "name": "mine",
        "server": {
            "model": "org/target",
            "speculative": {"method": "dflash", "model": "org/draft"},
            **server,
        },
        "space": {**(SPACE if whole is None else whole), **(space or {})},
        "workload": {"random": {"input_len": 8}, "output_len": 8, "num_prompts": 2},
    }
    body["workload"]["max_concurrency"] = 1
    if rehearsal is not None:
        body["rehearsal"] = rehearsal
    parse_study(yaml.safe_dump(body), Path("s.yaml"), **options)


def told(
    server: dict[str, Any],
    space: dict[str, Any] | None = None,
    *,
    whole: dict[str, Any] | None = None,
    rehearsal: dict[str, Any] | None = None,
) -> str:
    with pytest.raises(UserError) as e:
        read(server, space, whole=whole, rehearsal=rehearsal)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize(
    "flag",
    [
        *("spec-method", "spec_model", "--spec-tokens", "spec-tok", "speculative-model"),
        *("speculative-config.method", "speculative-disable-by-batch-size"),
    ],
)
def test_a_draft_by_flags_is_sent_to_its_section(flag: str) -> None:
    assert "write it as server.speculative" in told({"flags": {flag: "x"}})
    assert "write it as server.speculative" in told(
        {}, {flag.removeprefix("--"): {"type": "choice", "choices": ["a", "b"]}}
    )
    words = f"vllm serve --{flag.removeprefix('--')}=x"
    assert "write it as server.speculative" in told({"command": words})


@pytest.mark.parametrize(
    ("flag", "why"),
    [
        ("ssl-keyfile", "plain HTTP"),
        ("ssl-ca-certs", "plain HTTP"),
        ("enable-ssl-refresh", "plain HTTP"),
        ("root-path", "at its root"),
        ("config", "server.flags"),
        ("hf-token", "HF_TOKEN"),
        ("headless", "without an API"),
    ],
)
def test_what_makes_measuring_impossible(flag: str, why: str) -> None:
    assert why in told({"flags": {flag: "x"}})
    if flag != "hf-token":  # a secret in the command is refused at the launch, in its own words
        assert why in told({"command": f"vllm serve --{flag} x"})


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("vllm serve org/other", ["names the model org/other", "server.model"]),
        ("vllm serve --model org/other", ["--model", "server.model"]),
        ("vllm serve --max-num-batched-tokens 4096", ["--max-num-batched-tokens", f"space.{MNBT}"]),
        ("vllm serve --max_num_batched_tokens=4096", ["searched in space"]),
        ("vllm serve --max-num-batched 4096", ["searched in space"]),  # argparse takes beginnings
        ("vllm serve -sc.method ngram", ["-sc.method", "server.speculative"]),
        ("vllm serve -sc {}", ["server.speculative"]),
        ("vllm serve --speculative_config.method=ngram", ["server.speculative"]),
        ("vllm serve --spec-m ngram", ["server.speculative"]),
        ("vllm serve --port 8000", ["--port", "free port"]),
        ("vllm serve --host 0.0.0.0", ["--host", "127.0.0.1"]),
        ("vllm serve -tp 2", ["server.flags.tensor_parallel_size sets it"]),
        ("python -m vllm.entrypoints.openai.api_server --port 1", ["--port"]),
        ("python -m vllm.entrypoints.cli.main serve org/x", ["names the model org/x"]),
        ("nice -n 5 /opt/v/bin/vllm serve --spec-tokens 3", ["--spec-tokens"]),
        (["bash", "-c", "vllm serve --spec-tokens 3"], ["--spec-tokens"]),
        ("docker run --network host img --model org/x", ["--model", "server.model"]),
        ("docker run --network host img --spec-method ngram", ["server.speculative"]),
        ("docker run --network host img org/x --seed 1", ["names the model org/x"]),
        ("docker run --network host -p 1:1 img --port 8000", ["--port", "free port"]),
        ("docker run --network host img vllm serve --spec-tokens 3", ["--spec-tokens"]),
        ("./start.sh --max-num-batched-tokens 4096", ["searched in space"]),
    ],
)
def test_words_of_the_command(command: object, words: list[str]) -> None:
    line = told({"command": command, "flags": {"tensor-parallel-size": 1}})
    assert "server.command" in line
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    "command",
    [
        "vllm serve --enforce-eager --seed 3",
        "vllm serve --trust-remote-code",
        "docker run --rm --gpus all --ipc=host --network host --name x --hostname h -e A img",
        "docker --host tcp://10.0.0.1 --config dir run img",
        "./start.sh --config prod.yaml --port-file x",
        "conda run -n env vllm serve",
        "uv run --with vllm vllm serve",
    ],
)
def test_a_command_may_have_other_words(command: str) -> None:
    read({"command": command})


def test_mnbt_is_not_hidden_in_the_command_where_it_is_not_searched() -> None:
    body = {"command": "vllm serve --max-num-batched-tokens 4096"}
    with pytest.raises(UserError, match=r"write it as max-num-batched-tokens in server\.flags"):
        parse_study(
            yaml.safe_dump(
                {
                    "name": "mine",
                    "server": {
                        "model": "m",
                        "speculative": {"method": "ngram"},
                        **body,
                    },
                    "space": {N: SPACE[N]},
                    "workload": {
                        **{"random": {"input_len": 8}, "output_len": 8},
                        **{"num_prompts": 2, "max_concurrency": 1},
                    },
                }
            ),
            Path("s.yaml"),
        )


def test_a_key_of_an_option_in_two_places_is_named_twice() -> None:
    flags = {"compilation-config": {"mode": 0, "cudagraph_mode": "NONE"}}
    choice = {"type": "choice", "choices": ["NONE", "FULL"]}
    line = told({"flags": flags}, {"compilation-config.cudagraph_mode": choice})
    assert "space.compilation_config.cudagraph_mode: also given in" in line
    assert "server.flags.compilation_config" in line
    line = told({"flags": {**flags, "compilation-config.mode": 3}})
    assert "server.flags.compilation_config.mode: also given in" in line
    read({"flags": flags}, {"compilation-config.backend": choice})


SCHEDULED = {"num_speculative_tokens_per_batch_size": [[1, 8, 7], [9, 64, 2]]}
ONLY_MNBT = {MNBT: SPACE[MNBT]}
N_IS_ZERO = {**ONLY_MNBT, N: {"type": "choice", "choices": [0]}}


@pytest.mark.parametrize(
    ("draft", "space", "line"),
    [
        (
            {"method": "dflash", "model": "org/draft", **SCHEDULED},
            ONLY_MNBT,
            (
                f"s.yaml: server.speculative.{N}: is missing, so no launch would draft; search "
                f"space.{N}, or give it in server.speculative, such as 7, the largest n of the "
                "schedule; without drafts, leave server.speculative out"
            ),
        ),
        # methods for which vLLM has an n of its own, and one for which it has none
        *(
            (draft, ONLY_MNBT, f"s.yaml: server.speculative.{N}: is missing, so no launch")
            for draft in (
                {"method": "mtp"},
                {"method": "suffix"},
                {"method": "dspark"},
                {"method": "ngram", "prompt_lookup_max": 4},
                {"model": "org/draft"},
            )
        ),
        # a schedule that nothing would launch
        ({"method": "mtp", **SCHEDULED, N: 0}, ONLY_MNBT, f"server.speculative.{N}: is 0, so no"),
        ({"method": "mtp", **SCHEDULED}, N_IS_ZERO, f"s.yaml: space.{N}: is 0, so no launch"),
        # a schedule that is none is told where the launch is checked
        (
            {"method": "mtp", "num_speculative_tokens_per_batch_size": "all"},
            ONLY_MNBT,
            "or give it in server.speculative; without drafts",
        ),
    ],
)
def test_a_draft_without_n_would_never_draft(
    draft: dict[str, Any], space: dict[str, Any], line: str
) -> None:
    assert line in told({"speculative": draft}, whole=space)


@pytest.mark.parametrize(
    ("draft", "space"),
    [
        ({"method": "mtp", **SCHEDULED, N: 7}, ONLY_MNBT),
        ({"method": "mtp", **SCHEDULED}, SPACE),
        ({"method": "mtp", N: 1}, ONLY_MNBT),
        # it says that it drafts nothing
        ({"method": "mtp", N: 0}, ONLY_MNBT),
        ({"method": "mtp"}, N_IS_ZERO),
    ],
)
def test_an_n_in_one_place_is_enough(draft: dict[str, Any], space: dict[str, Any]) -> None:
    read({"speculative": draft}, whole=space)


def test_a_study_that_was_run_is_still_read() -> None:
    read({"speculative": {"method": "mtp"}}, whole=ONLY_MNBT, stored=True)
    server = {"flags": {"spec-tokens": 3}, "command": "vllm serve --max-num-batched-tokens 4096"}
    told(server)
    read(server, stored=True)


@pytest.mark.parametrize(
    ("server", "key"),
    [
        ({"flags": {"load-format": "dummy"}}, "rehearsal.weights: the study sets random weights"),
        ({"command": "vllm serve --load-format=dummy"}, "rehearsal.weights: the study sets"),
        ({"env": {"VLLM_MOE_ROUTING_SIMULATION_STRATEGY": "x"}}, "rehearsal.routing: the study"),
    ],
)
def test_a_rehearsal_says_all_that_is_played(server: dict[str, Any], key: str) -> None:
    assert key in told(server, rehearsal={"acceptance": {"rate": 0.5}})
