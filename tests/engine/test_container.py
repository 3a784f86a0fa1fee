"""What a launch adds to the words that start a server in a container."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

import pytest

from autotune.engine.command import plan_launch
from autotune.engine.container import ENGINE_VARIABLES, placed
from autotune.engine.flags import check_flags
from autotune.engine.probe import VllmInfo
from autotune.errors import UserError
from autotune.study.files import parse_study
from autotune.study.schema import ServerSpec

ENV = {"VLLM_API_KEY": "key", "PATH": "/bin"}
UNKNOWN = VllmInfo(None, None, None, None, None, (), ())


def words(command: str) -> tuple[str, str]:
    """The command for port 4321, and the address that the server binds."""
    found = placed(shlex.split(command), port=4321, env=ENV)
    return shlex.join(found.argv), found.host


@pytest.mark.parametrize(
    ("command", "expected", "host"),
    [
        (
            "docker run --rm --gpus all img --model m",
            "docker run -e VLLM_API_KEY --rm --gpus all --network host img --model m",
            "127.0.0.1",
        ),
        (
            "docker run --rm --network llm img --model m",
            "docker run -e VLLM_API_KEY -p 127.0.0.1:4321:4321 --rm --network llm img --model m",
            "0.0.0.0",  # noqa: S104
        ),
        (
            "docker compose run llm --model m",
            "docker compose run -e VLLM_API_KEY -p 127.0.0.1:4321:4321 --rm llm --model m",
            "0.0.0.0",  # noqa: S104
        ),
        (
            "podman run --network=host img vllm serve --model m --seed 1",
            "podman run -e VLLM_API_KEY --rm --network=host img vllm serve m --seed 1",
            "127.0.0.1",
        ),
        (
            "sudo docker run --rm --net host i m",
            "sudo -n --preserve-env=VLLM_API_KEY docker run -e VLLM_API_KEY --rm --net host i m",
            "127.0.0.1",
        ),
        ("nice -n 5 vllm serve m", "nice -n 5 vllm serve m", "127.0.0.1"),
        ("apptainer run --nv v.sif --model m", "apptainer run --nv v.sif --model m", "127.0.0.1"),
    ],
)
def test_a_command_is_ready_for_its_port(command: str, expected: str, host: str) -> None:
    assert words(command) == (expected, host)


def test_a_variable_that_the_command_sets_stays_as_it_is() -> None:
    found = placed(("docker", "run", "-e", "A=1", "img"), port=1, env={"A": "2", "B": "3"})
    assert found.argv[:6] == ("docker", "run", "-e", "B", "--rm", "-e")
    assert "A=1" in found.argv


@pytest.mark.parametrize(
    ("program", "prefix"), [("apptainer", "APPTAINERENV_"), ("singularity", "SINGULARITYENV_")]
)
def test_a_cleaned_environment_gets_the_variables_all_the_same(program: str, prefix: str) -> None:
    argv = (program, "exec", "--cleanenv", "v.sif", "vllm", "serve", "m")
    assert placed(argv, port=1, env=ENV).env == {f"{prefix}VLLM_API_KEY": "key"}
    assert placed((program, "exec", "v.sif", "vllm"), port=1, env=ENV).env == {}


def test_the_key_and_the_studys_variables_are_given_by_name(tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\n")
    docker.chmod(0o755)
    spec = ServerSpec(
        command=(str(docker), "run", "--gpus", "all", "img"),
        model="org/m",
        env={"VLLM_USE_V1": "1", "DOCKER_HOST": "unix:///run/other.sock"},
    )
    plan = plan_launch(spec, {}, UNKNOWN, port=4321, launch_id="abc", resolve=str)
    before = plan.argv[: plan.argv.index("img")]
    names = {b for a, b in itertools.pairwise(before) if a == "-e"}
    assert {"VLLM_API_KEY", "AUTOTUNE_LAUNCH", "AUTOTUNE_OWNER", "VLLM_USE_V1"} <= names
    assert not names & ENGINE_VARIABLES  # those are the client's
    assert not any(plan.api_key in word for word in plan.argv)
    assert plan.env["VLLM_API_KEY"] == plan.api_key
    assert plan.argv[-4:] == ("--host", "127.0.0.1", "--port", "4321")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("docker run --rm --gpus all -p 8000:8000 --ipc=host img", "-p 8000:8000"),
        ("docker run -d --name vllm --network host img", "-d"),
        ("docker exec vllm vllm serve", "docker run"),
    ],
)
def test_a_container_that_cannot_be_measured_is_told_before_launch(command: str, said: str) -> None:
    text = (
        f"name: s\nserver: {{command: {command!r}, model: m}}\n"
        "space: {max_num_batched_tokens: {type: pow2, low: 2048, high: 4096}}\n"
        "workload: {random: {input_len: 8}, output_len: 8, num_prompts: 100, max_concurrency: 1}\n"
    )
    with pytest.raises(UserError, match=r"study\.yaml: server\.command: ") as e:
        check_flags(parse_study(text, Path("study.yaml")), UNKNOWN)
    assert said in str(e.value)
    assert "\n" not in str(e.value)
