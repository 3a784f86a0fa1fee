"""The one start of vLLM in what people paste: wrappers, scripts, containers and their files."""

from __future__ import annotations

import shlex

import pytest

from autotune.errors import UserError
from autotune.study.start import Start, start_of, start_of_manifest


def text(command: str) -> Start:
    return start_of([command])


def words(command: str) -> Start:
    return start_of(shlex.split(command))


@pytest.mark.parametrize("read", [text, words])
@pytest.mark.parametrize(
    ("before", "command"),
    [
        ("vllm serve", "vllm serve"),
        ("/opt/v/bin/vllm serve", "/opt/v/bin/vllm serve"),
        ("exec vllm serve", "vllm serve"),
        ("nohup nice -n 5 vllm serve", "nice -n 5 vllm serve"),
        ("time -p vllm serve", "vllm serve"),
        ("setsid -f vllm serve", "vllm serve"),
        ("sudo -E -u vllm vllm serve", "vllm serve"),
        ("timeout -k 5 3600 vllm serve", "vllm serve"),
        ("stdbuf -oL vllm serve", "vllm serve"),
        ("tini -g -- vllm serve", "vllm serve"),
        ("systemd-run --user -p MemoryMax=9G vllm serve", "vllm serve"),
        (
            "systemd-run --scope -p MemoryMax=9G vllm serve",
            "systemd-run --scope -p MemoryMax=9G vllm serve",
        ),
        ("numactl --cpunodebind=0 -m 0 vllm serve", "numactl --cpunodebind=0 -m 0 vllm serve"),
        ("taskset -c 0-7 vllm serve", "taskset -c 0-7 vllm serve"),
        ("chrt -r 10 ionice -c 2 -n 0 vllm serve", "chrt -r 10 ionice -c 2 -n 0 vllm serve"),
        ("env -u HTTP_PROXY vllm serve", "env -u HTTP_PROXY vllm serve"),
        ("uv run --with vllm==0.32.0 vllm serve", "uv run --with vllm==0.32.0 vllm serve"),
        ("uvx --from vllm vllm serve", "uvx --from vllm vllm serve"),
        ("uv tool run vllm serve", "uv tool run vllm serve"),
        ("poetry run vllm serve", "poetry run vllm serve"),
        ("pixi run -e gpu vllm serve", "pixi run -e gpu vllm serve"),
        ("conda run -n v vllm serve", "conda run -n v --no-capture-output vllm serve"),
        ("conda run --live-stream -n v vllm serve", "conda run --live-stream -n v vllm serve"),
        ("python /opt/v/bin/vllm serve", "python /opt/v/bin/vllm serve"),
        (
            "/opt/v/bin/python3.12 -u -X dev -m vllm.entrypoints.cli.main serve",
            "/opt/v/bin/python3.12 -u -X dev -m vllm.entrypoints.cli.main serve",
        ),
        ("bash -c 'vllm serve org/m --seed 1' --", "vllm serve"),
        ("sh -lc 'exec vllm serve org/m --seed 1'", "vllm serve"),
        ("env -S vllm serve", "vllm serve"),
    ],
)
def test_wrappers_that_matter_stay_and_others_go(read: object, before: str, command: str) -> None:
    whole = before if "org/m" in before else f"{before} org/m --seed 1"
    start = text(whole) if read is text else words(whole)
    assert start.command == shlex.split(command)
    assert start.arguments == ["org/m", "--seed", "1"]
    assert start.console


def test_what_is_left_out_is_said() -> None:
    start = words("nohup setsid vllm serve org/m")
    assert start.notes == [
        "left out: nohup (autotune's supervisor holds the server)",
        "left out: setsid (autotune watches the server in the foreground and ends it)",
    ]
    assert any("flags are not checked" in note for note in words("uv run vllm serve m").notes)


@pytest.mark.parametrize(
    "command",
    [
        "python3 -m vllm.entrypoints.openai.api_server --model org/m",
        "uv run -m vllm.entrypoints.openai.api_server --model org/m",
        "python -m vllm.entrypoints.launchers.api_server.entry --model org/m",
    ],
)
def test_modules_that_take_the_model_as_a_flag(command: str) -> None:
    start = words(command)
    assert start.arguments == ["--model", "org/m"]
    assert not start.console


def test_a_start_script() -> None:
    start = text(
        "#!/usr/bin/env bash\n"
        "set -euo pipefail\n"
        "# the model\n"
        "MODEL=org/m\n"
        "export HF_TOKEN=hf_abcdefghijkl CUDA_VISIBLE_DEVICES=0,1\n"
        "source .venv/bin/activate && cd /data\n"
        "pip install --token=abcdefghijk vllm; ulimit -n 65536\n"
        'ARGS=(\n  --max-num-seqs 8 # few\n  --served-model-name "a b"\n)\n'
        'OMP_NUM_THREADS=4 vllm serve "$MODEL" "${ARGS[@]}" --tensor-parallel-size ${TP:-2} \\\n'
        '  "$@" > vllm.log 2>&1 &\n'
        "echo started\nwait\n"
    )
    assert start.command == ["vllm", "serve"]
    assert start.arguments == [
        *("org/m", "--max-num-seqs", "8", "--served-model-name", "a b"),
        *("--tensor-parallel-size", "2"),
    ]
    assert start.env["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert start.env["OMP_NUM_THREADS"] == "4"
    notes = "\n".join(start.notes)
    assert "source .venv/bin/activate; cd /data; pip …; ulimit -n 65536" in notes
    assert "no environment is activated" in notes
    assert "left out: > vllm.log" in notes
    assert "abcdefghijk" not in notes


def test_operators_that_came_as_words_are_operators() -> None:
    start = start_of(["export", "A=1", "&&", "vllm", "serve", "my m", ">", "log", "2>&1", "&"])
    assert start.arguments == ["my m"]
    assert start.env == {"A": "1"}


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("vllm serve a; vllm serve b", "starts vLLM 2 times (a, b)"),
        ("while :; do vllm serve a; done", "in a loop"),
        ("run() { vllm serve a; }; run", "in a function"),
        ("if x; then vllm serve a; fi", "in an `if`"),
        ("vllm serve a \\\n  # --seed 1\n  --enforce-eager", "is a command of its own"),
        ("torchrun vllm serve a", "it starts several processes"),
        ("nsys profile -t cuda vllm serve a", "a profiler"),
        ("tmux new -d vllm serve a", "autotune watches the server"),
        ("env -i vllm serve a", "without autotune's variables"),
        ("foo --bar vllm serve a", "`foo` in front of vLLM is not understood"),
        ("$RUN vllm serve a", "only your shell knows what $RUN is"),
        ("python -m vllm serve a", "starts no server"),
        ("python -m vllm.entrypoints.api_server --model a", "demo server"),
        ("vllm bench serve --model a", "`vllm bench` is no command"),
        ("echo vllm serve a", "is no command that starts vLLM"),
        ("docker run $OPTS vllm/vllm-openai:v0.32.0 --model a", "only your shell knows"),
        ("docker pull vllm/vllm-openai:v0.32.0", "is no command that starts vLLM"),
        ("srun --gpus 1 vllm serve m", "Slurm's srun is not supported"),
        ("enroot start v vllm serve m", "enroot is not supported"),
        ("docker start vllm", "write `docker run"),
        ("docker compose up -d", "`autotune init -- FILE.yaml`"),
        ("kubectl apply -f vllm.yaml", "`autotune init -- FILE.yaml`"),
        ("kubectl run v --image vllm/vllm-openai -- --model a", "kubectl is not supported"),
        ("", "is no command that starts vLLM"),
        ("sh -c " * 9 + "x", "is no command that starts vLLM"),
    ],
)
def test_what_cannot_be_taken_for_certain_is_one_line(command: str, told: str) -> None:
    with pytest.raises(UserError) as e:
        text(command)
    assert told in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("wrapper", ["exec", "nohup", "time -p", "nohup setsid"])
def test_a_word_of_the_shell_in_front_of_an_engine_is_left_out(wrapper: str) -> None:
    start = start_of([f"{wrapper} docker run --gpus all vllm/vllm-openai:v0.32.0 --model a"])
    assert start.command[:2] == ["docker", "run"]
    assert any(note.startswith(f"left out: {wrapper.split()[0]} ") for note in start.notes)


def test_docker_run_becomes_an_owned_container() -> None:
    start = text(
        "docker run -d --name v -p 8000:8000 --gpus all -e HF_TOKEN=$HF_TOKEN \\\n"
        "  -v $HOME/.cache:/root/.cache vllm/vllm-openai:v0.32.0 org/m --seed 1"
    )
    assert start.arguments == ["org/m", "--seed", "1"]
    assert {"--rm", "--network", "host"} <= {*start.command}
    assert not {"-d", "-p", "--name"} & {*start.command}
    assert ("-e", "HF_TOKEN") in list(zip(start.command, start.command[1:], strict=False))
    assert not any("$" in w for w in start.command)


COMPOSE = """
services:
  proxy:
    image: nginx
    command: ["nginx"]
  model:
    image: vllm/vllm-openai:${TAG:-v0.32.0}
    ports: ["8000:8000"]
    ipc: host
    restart: always
    volumes: ["/data/hf:/root/.cache/huggingface"]
    environment:
      HF_TOKEN: hf_abcdefghijkl
      VLLM_LOGGING_LEVEL: DEBUG
    deploy:
      resources:
        reservations:
          devices: [{driver: nvidia, count: all, capabilities: [gpu]}]
    command: >
      --model org/m --max-num-seqs 8
      --served-model-name "a b"
"""


def test_a_compose_file() -> None:
    start = start_of_manifest(COMPOSE)
    assert start.command[:2] == ["docker", "run"]
    assert start.command[-1] == "vllm/vllm-openai:v0.32.0"
    for pair in (("--gpus", "all"), ("--network", "host"), ("-e", "VLLM_LOGGING_LEVEL=DEBUG")):
        assert pair in list(zip(start.command, start.command[1:], strict=False))
    assert "hf_abcdefghijkl" not in " ".join([*start.command, *start.notes])
    assert start.arguments[:4] == ["--model", "org/m", "--max-num-seqs", "8"]
    assert start.arguments[4:] == ["--served-model-name", "a b"]


POD = """
apiVersion: apps/v1
kind: Deployment
spec:
  template:
    spec:
      containers:
        - name: vllm
          image: vllm/vllm-openai:v0.32.0
          %s
          env:
            - {name: MODEL, value: org/m}
            - name: HF_TOKEN
              valueFrom: {secretKeyRef: {name: hf, key: token}}
"""


@pytest.mark.parametrize(
    "run",
    [
        'args: ["--model", "$(MODEL)", "--max-num-seqs", "8"]',
        'command: ["vllm", "serve", "$(MODEL)", "--max-num-seqs", "8"]',
        'command: ["/bin/sh", "-c"]\n          args: ["vllm serve $MODEL --max-num-seqs 8"]',
        """command: ["python3", "-m", "vllm.entrypoints.openai.api_server"]
          args: ["--model", "$(MODEL)", "--max-num-seqs", "8"]""",
    ],
)
def test_a_pod(run: str) -> None:
    start = start_of_manifest(POD % run)
    assert [w for w in start.arguments if w != "--model"] == ["org/m", "--max-num-seqs", "8"]
    assert start.env == {"MODEL": "org/m"}
    assert any("left out: HF_TOKEN" in note for note in start.notes)
    assert any("in such a pod" in note for note in start.notes)


@pytest.mark.parametrize(
    ("manifest", "told"),
    [
        (
            "services:\n  a: {image: vllm/a}\n  b: {image: vllm/b}",
            "several containers start vLLM: a",
        ),
        ("services:\n  a: {image: nginx}", "no container that starts vLLM"),
        ("services:\n  a: {image: [", "looks like a Compose or Kubernetes file"),
        (POD % 'args: ["--model", "$(OTHER)"]', None),
    ],
)
def test_manifests_that_are_refused(manifest: str, told: str | None) -> None:
    if told is None:  # the unknown variable is refused where its word is used
        assert "$(OTHER)" in start_of_manifest(manifest).arguments[1]
        return
    with pytest.raises(UserError, match=told):
        start_of_manifest(manifest)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ('N="a b"; vllm serve org/m ${N:+--x "$N"}', ["org/m", "--x", "a b"]),
        ('N=2; vllm serve org/m ${N:+"--x" "$N"}', ["org/m", "--x", "2"]),
        ("vllm serve org/m ${X:---x 8}", ["org/m", "--x", "8"]),
        ("vllm serve org/m ${X:-'{\"a\": 1}'}", ["org/m", '{"a": 1}']),
        ("vllm serve ${X:-a;b}", ["a;b"]),
        ("vllm serve org/m ${X:-}", ["org/m"]),
        ("vllm serve org/m 2> >(tee e) > >(cat)", ["org/m"]),
    ],
)
def test_words_of_a_default_are_split_as_a_shell_does(command: str, arguments: list[str]) -> None:
    assert text(command).arguments == arguments


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("--model org/m --seed 1", "names no program; write `vllm serve` before it"),
        ("serve org/m", "names no program; write `vllm` before it"),
    ],
)
def test_a_command_without_its_program(command: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        text(command)


HEAD = "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n"


@pytest.mark.parametrize(
    "container",
    [
        '{name: a, image: vllm/vllm-openai, args: [serve, org/m, --seed, "1"]}',
        '{name: a, image: vllm/vllm-openai, command: [vllm, serve, org/m, --seed, "1"]}',
        '{name: a, image: x, command: [bash, -c, --], args: ["vllm serve org/m --seed 1"]}',
        '{name: a, image: vllm/vllm-openai, command: [sh, -c, "x; vllm serve org/m --seed 1"]}',
    ],
)
def test_a_pod_is_no_service_of_compose(container: str) -> None:
    found = start_of_manifest(f"{HEAD}  - {container}\n  - {{name: b, image: nginx}}\n")
    assert (found.command, found.arguments) == (["vllm", "serve"], ["org/m", "--seed", "1"])
    assert any("in such a pod" in note for note in found.notes)


def test_anchors_and_passed_variables_of_compose() -> None:
    found = start_of_manifest(
        "x-common: &c\n  image: vllm/vllm-openai\n  ipc: host\n"
        "services:\n  vllm:\n    <<: *c\n    command: --model org/m\n"
        "    environment: [PASSED, A=1]\n"
    )
    assert found.arguments == ["--model", "org/m"]
    assert found.command[:9] == shlex.split("docker run --rm --ipc host -e PASSED -e A=1")
    found = start_of_manifest(
        "services:\n  v:\n    image: vllm/vllm-openai\n    command: --model org/m\n"
        "    environment: {PASSED: null}\n"
    )
    assert shlex.join(found.command).startswith("docker run --rm -e PASSED --network host")


def test_a_template_of_helm_says_so() -> None:
    with pytest.raises(UserError, match="helm template"):
        start_of_manifest(HEAD + "  - image: {{ .Values.image }}\n    args: [--model, org/m]\n")
