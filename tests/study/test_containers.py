"""Commands that start a server in a container, taken apart and written for an owned server."""

from __future__ import annotations

import shlex

import pytest

from autotune.errors import UserError
from autotune.study.containers import Container, is_container, normalized, parse, refusal


def taken(command: str) -> Container:
    """Return a command that is known to start a container, taken apart."""
    container = parse(shlex.split(command))
    assert container is not None
    return container


def owned(command: str) -> tuple[str, str]:
    """Return the words of the owned server, and the model and flags."""
    found = normalized(taken(command))
    return shlex.join(found.command), shlex.join(found.arguments)


@pytest.mark.parametrize(
    ("command", "head", "arguments"),
    [
        (
            "docker run --gpus all -p 8000:8000 --ipc=host vllm/vllm-openai:v0.27.0 --model org/m",
            "docker run --rm --gpus all --ipc=host --network host vllm/vllm-openai:v0.27.0",
            "--model org/m",
        ),
        (
            "docker run -itd --name a --restart always --net=host --shm-size 16g img org/m -tp 2",
            "docker run --rm --net=host --shm-size 16g img",
            "org/m -tp 2",
        ),
        (
            "sudo -E docker container run --rm -dp80:8000 -e A=b img vllm serve org/m --seed 1",
            "sudo -E docker container run --rm -e A=b --network host img vllm serve",
            "org/m --seed 1",
        ),
        (
            "docker --context gpu run -m 64g -c 512 -u 2000:0 img --model m",
            "docker --context gpu run --rm -m 64g -c 512 -u 2000:0 --network host img",
            "--model m",
        ),
        (
            "podman --root /r run --device nvidia.com/gpu=all --userns keep-id --rmi --replace i m",
            (
                "podman --root /r run --rm --device nvidia.com/gpu=all --userns keep-id "
                "--network host i"
            ),
            "m",
        ),
        (
            "nerdctl -n k8s.io run --gpus all -p 1:1 img m",
            "nerdctl -n k8s.io run --rm --gpus all --network host img",
            "m",
        ),
        (
            "docker run --gpus all -- img m",
            "docker run --rm --gpus all --network host img",
            "m",
        ),
        (
            "docker run --entrypoint python3 img -m vllm.entrypoints.openai.api_server --model m",
            (
                "docker run --rm --entrypoint python3 --network host img "
                "-m vllm.entrypoints.openai.api_server"
            ),
            "--model m",
        ),
        (
            "docker run rocm/vllm python3 -m vllm.entrypoints.cli.main serve m",
            "docker run --rm --network host rocm/vllm python3 -m vllm.entrypoints.cli.main serve",
            "m",
        ),
        (
            "docker run --entrypoint /bin/bash img -lc 'exec vllm serve m --seed 1'",
            "docker run --rm --entrypoint vllm --network host img serve",
            "m --seed 1",
        ),
        (
            "docker compose -f gpu.yaml run --rm -T -p 8000:8000 llm --model m",
            "docker compose -f gpu.yaml run --rm llm",
            "--model m",
        ),
        (
            "apptainer exec --nv -B /data:/data vllm.sif vllm serve m --seed 1",
            "apptainer exec --nv -B /data:/data vllm.sif vllm serve",
            "m --seed 1",
        ),
    ],
)
def test_a_start_in_a_container_is_taken_apart(command: str, head: str, arguments: str) -> None:
    assert owned(command) == (head, arguments)


def test_the_words_of_an_owned_server_are_their_own_owned_form() -> None:
    """What init writes is not refused, and is not changed again."""
    words, _ = owned("docker run -d -p 8000:8000 -v ~/models:/models -e HF_TOKEN=hf_1234567 img m")
    again = normalized(taken(words))
    assert shlex.join(again.command) == words
    assert again.notes == ()
    assert refusal(shlex.split(words)) is None


def test_another_network_stays_and_gets_no_host_network() -> None:
    assert owned("docker run --network llm -p 1:1 img m")[0] == "docker run --rm --network llm img"
    kept = owned("docker run --sysctl net.core.somaxconn=1024 img m")[0]
    assert "--network" not in kept


def test_no_secret_stays_in_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    found = normalized(
        taken(
            "docker run -e HF_TOKEN=hf_abcdefgh --env OTHER_KEY=$OTHER_KEY -e VLLM_API_KEY=abc "
            "-e VLLM_USE_V1=1 -v ~/.cache:/root/.cache -v '$HOME/x:/x' img m"
        )
    )
    assert shlex.join(found.command) == (
        "docker run --rm -e HF_TOKEN -e OTHER_KEY -e VLLM_USE_V1=1 -v /home/me/.cache:/root/.cache "
        "-v /home/me/x:/x --network host img"
    )
    assert not any("hf_abcdefgh" in note for note in found.notes)
    assert any("HF_TOKEN" in note and "your environment" in note for note in found.notes)


def test_env_tells_values_and_names() -> None:
    found = taken("docker run -e A=1 --env=B=2 -e C img m")
    assert found.env == {"A": "1", "B": "2", "C": None}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("docker exec vllm0 vllm serve m", "docker run"),
        ("docker compose up -d", "compose run SERVICE"),
        ("srun --container-image=x vllm serve m", "inside the allocation"),
        ("docker run --gpus all", "names no image"),
        ("docker run --unheard-of x img", "--unheard-of=VALUE"),
        ("docker run -X img", "-X"),
        ("numactl -N 0 docker run img m", "--cpuset-cpus"),
        ("docker -H ssh://gpu1 run img m", "another machine"),
        ("docker run --network none img m", "--network host"),
        ("podman run --pod llm img m", "--pod"),
        ("docker run --rm img bash -c 'source env.sh && vllm serve m'", "--entrypoint vllm"),
        ("singularity instance start x.sif a", "singularity run"),
    ],
)
def test_what_cannot_be_owned_is_refused_with_what_to_write(command: str, words: str) -> None:
    with pytest.raises(UserError) as e:
        normalized(taken(command))
    assert words in str(e.value)
    assert "\n" not in str(e.value)
    assert words in (refusal(shlex.split(command)) or "")


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("docker run --rm -p 8000:8000 img", "-p 8000:8000"),
        ("docker run -d --network host img", "-d"),
        ("docker run --restart unless-stopped --network host img", "--restart unless-stopped"),
        ("docker run -it --network host img", "-t"),
    ],
)
def test_a_command_of_a_study_that_cannot_be_measured_is_refused(command: str, wrong: str) -> None:
    said = refusal(shlex.split(command))
    assert said is not None
    assert f"has no {wrong}" in said
    assert owned(f"{command} m")[0] in said


@pytest.mark.parametrize(
    "command",
    [
        "docker run --rm --network host --name mine img",
        "docker run --network host -p 8000:8000 img",  # docker ignores -p there
        "docker run img",
        "vllm serve",
        "nice -n 5 vllm serve",
        "apptainer run --nv vllm.sif",
    ],
)
def test_a_command_that_serves_is_not_refused(command: str) -> None:
    assert refusal(shlex.split(command)) is None


def test_the_official_image_with_its_entrypoint_twice_is_told() -> None:
    notes = normalized(taken("docker run vllm/vllm-openai:v0.32.0 vllm serve m")).notes
    assert any("already starts" in note for note in notes)
    ours = normalized(taken("docker run me/vllm:1 vllm serve m")).notes
    assert not any("already starts" in note for note in ours)


@pytest.mark.parametrize(
    ("command", "is_one"),
    [
        ("nohup docker run img", True),
        ("env A=1 sudo -u me podman run img", True),
        ("nice -n 5 docker run img", True),
        ("taskset -c 0-3 podman run img", True),
        ("timeout -k 5 60 docker run img", True),
        ("ionice -c 2 sudo -n docker run img", True),
        ("tmux new docker run img", False),
        ("taskset -c 0-3 vllm serve m", False),
        ("vllm serve docker", False),
        ("python -m vllm.entrypoints.openai.api_server", False),
        ("/opt/docker/bin/vllm serve m", False),
    ],
)
def test_container_commands_are_recognized(command: str, is_one: bool) -> None:
    assert is_container(shlex.split(command)) is is_one
