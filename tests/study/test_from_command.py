"""Studies that `autotune init` writes: they load, and say what the command said."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.engine.rules import why_infeasible
from autotune.errors import UserError
from autotune.study.files import LoadedStudy, parse_study
from autotune.study.from_command import study_from_command, template
from autotune.study.space import MNBT, IntParam, N, Pow2Param


def study(command: str) -> LoadedStudy:
    return parse_study(study_from_command(shlex.split(command), "mine"), Path("mine.yaml"))


def test_template_loads_under_any_name() -> None:
    for name in ("my-study", "123", "true"):
        spec = parse_study(template(name), Path("x.yaml")).spec
        assert spec.name == name
        assert set(spec.space) == {N, MNBT}


def test_a_command_with_everything() -> None:
    spec = study(
        "CUDA_VISIBLE_DEVICES=1 VLLM_USE_FLASHINFER_SAMPLER=0 /opt/v/bin/vllm serve org/target "
        "--max-num-seqs 8 --max_model_len=4k -tp 2 --gpu-memory-utilization 0.90 "
        "--kv-cache-dtype fp8 --trust-remote-code --no-enable-prefix-caching -O3 "
        "--served-model-name a b --cudagraph-capture-sizes 1 2 4 "
        """--compilation-config '{"mode": 3, "custom_ops": ["all"]}' """
        "--max-num-batched-tokens 4096 --host 0.0.0.0 --port=8123 --api-key sk-1234567890 "
        """--speculative-config '{"method": "dflash", "model": "org/draft", """
        """"num_speculative_tokens": 20, "attention_backend": "flash_attn"}'"""
    ).spec
    assert spec.server.command == ("/opt/v/bin/vllm", "serve")
    assert spec.server.model == "org/target"
    assert spec.server.env == {"CUDA_VISIBLE_DEVICES": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
    assert spec.server.flags == {
        "max_num_seqs": 8,
        "max_model_len": "4k",
        "tensor_parallel_size": 2,
        "gpu_memory_utilization": 0.9,
        "kv_cache_dtype": "fp8",
        "trust_remote_code": True,
        "enable_prefix_caching": False,
        "optimization_level": 3,
        "served_model_name": ["a", "b"],
        "cudagraph_capture_sizes": [1, 2, 4],
        "compilation_config": {"mode": 3, "custom_ops": ["all"]},
    }
    assert spec.server.speculative is not None
    assert spec.server.speculative.model_dump() == {
        "method": "dflash",
        "model": "org/draft",
        "attention_backend": "flash_attn",
    }
    assert spec.space == {
        N: IntParam(type="int", low=0, high=20),
        MNBT: Pow2Param(type="pow2", low=1024, high=16384),
    }
    assert spec.workload.max_concurrency == 8


def test_with_a_schedule_n_ends_at_its_largest() -> None:
    command = (
        "vllm serve org/target --speculative-config "
        """'{"method": "eagle3", "model": "org/draft", "num_speculative_tokens": 5, """
        """"num_speculative_tokens_per_batch_size": SCHEDULE}'"""
    )
    spec = study(command.replace("SCHEDULE", "[[1, 4, 7], [5, 32, 3]]")).spec
    assert spec.space[N] == IntParam(type="int", low=0, high=7)
    with pytest.raises(UserError, match=r"^--speculative-config: num_spec.* must be a list of"):
        study(command.replace("SCHEDULE", "[7, 3]"))


def test_what_is_left_out_is_said_and_secrets_are_nowhere() -> None:
    text = study_from_command(
        shlex.split(
            "HF_TOKEN=hf_abcdefghijk TOKENIZERS_PARALLELISM=false vllm serve m --host 0.0.0.0 "
            "--api-key sk-1234567890 --hf-token hf_abcdefghijk"
        ),
        "mine",
    )
    for name in ("--host", "--api-key", "--hf-token", "HF_TOKEN"):
        assert f"# left out: {name}" in text
    assert "hf_abc" not in text
    assert "sk-1" not in text
    spec = parse_study(text, Path("mine.yaml")).spec
    assert spec.server.flags == {}
    assert spec.server.env == {"TOKENIZERS_PARALLELISM": "false"}


@pytest.mark.parametrize(
    "command",
    [
        "python3 -m vllm.entrypoints.openai.api_server --port 1 --model org/m --enforce-eager",
        "env python3 -m vllm.entrypoints.openai.api_server --enforce-eager --model=org/m",
    ],
)
def test_the_module_form(command: str) -> None:
    spec = study(command).spec
    assert spec.server.command == ("python3", "-m", "vllm.entrypoints.openai.api_server")
    assert spec.server.model == "org/m"
    assert spec.server.flags == {"enforce_eager": True}


def test_one_word_with_line_breaks_is_split() -> None:
    text = "vllm serve 'my models/a' \\\n  --max-num-seqs 4 \\\n  --seed -1\n"
    spec = parse_study(study_from_command([text], "mine"), Path("mine.yaml")).spec
    assert spec.server.model == "my models/a"
    assert spec.server.flags == {"max_num_seqs": 4, "seed": -1}


def test_model_as_a_flag_of_serve() -> None:
    assert study("vllm serve -tp 2 --model 135 --enforce-eager").spec.server.model == "135"


def test_dotted_speculative_config() -> None:
    spec = study(
        "vllm serve m --speculative-config.method dflash --speculative-config.model ./draft "
        f"--speculative-config.{N.replace('_', '-')} 7 -cc.mode 3"
    ).spec
    assert spec.server.speculative is not None
    assert spec.server.draft_settings({N: 2}) == {"method": "dflash", "model": "./draft", N: 2}
    assert spec.server.flags == {"compilation_config": {"mode": 3}}
    assert spec.space[N] == IntParam(type="int", low=0, high=15)


def test_without_a_draft_only_the_budget_is_searched() -> None:
    text = study_from_command(["vllm", "serve", "org/m"], "mine")
    assert set(parse_study(text, Path("mine.yaml")).spec.space) == {MNBT}
    # … and taking out the marks as it says gives a study with one
    for line in ("speculative:", "  method: dflash", "  model: org/draft"):
        text = text.replace(f"  # {line}\n", f"  {line}\n")
    text = text.replace(f"  # {N}", f"  {N}").replace("  #   ", "    ")
    assert set(parse_study(text, Path("mine.yaml")).spec.space) == {N, MNBT}


@pytest.mark.parametrize("version", ["0.26.0", "0.32.0"])
@pytest.mark.parametrize("seqs", [1, 5, 256, 1024])
@pytest.mark.parametrize(
    "mnbt", ["", "--max-num-batched-tokens 100", "--max-num-batched-tokens 8K"]
)
def test_every_n_can_be_launched_somewhere_in_the_range(seqs: int, mnbt: str, version: str) -> None:
    spec = study(
        f"vllm serve m --max-num-seqs {seqs} {mnbt} "
        """--speculative-config '{"method":"dflash","model":"d","num_speculative_tokens":4}'"""
    ).spec
    budgets = spec.space[MNBT].values()
    assert budgets
    for n in range(16):
        assert why_infeasible(spec.settings({N: n, MNBT: budgets[-1]}), version) is None
        if version == "0.32.0":
            assert why_infeasible(spec.settings({N: n, MNBT: budgets[0]}), version) is None


def test_without_chunked_prefill_a_whole_prompt_fits() -> None:
    spec = study("vllm serve m --no-enable-chunked-prefill --max-model-len 30000").spec
    assert spec.space[MNBT] == Pow2Param(type="pow2", low=32768, high=32768)


def test_the_load_fits_into_a_short_model_length() -> None:
    w = study("vllm serve m --max-model-len 100").spec.workload
    assert w.random is not None
    assert w.random.input_len + w.output_len <= 100


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("ollama run x", "is no command that starts vLLM"),
        ("vllm serve", "names no model"),
        ("vllm serve --enforce-eager", "names no model"),
        ("vllm serve m -zz 1", "-zz: is no short flag"),
        ("vllm serve m --speculative-config dflash", "must be a JSON object"),
        ("vllm serve m --speculative-config {method:x}", "is not JSON"),
        ("""vllm serve m -sc '{"attention_backend": "x"}'""", "names neither a draft"),
        (
            """vllm serve m -sc '{"model": "d", "num_speculative_tokens": 0}'""",
            "must be a whole number",
        ),
    ],
)
def test_mistakes_are_one_line(command: str, told: str) -> None:
    with pytest.raises(UserError) as e:
        study(command)
    assert told in str(e.value)
    assert "\n" not in str(e.value)


def test_a_quote_that_never_ends() -> None:
    with pytest.raises(UserError, match="cannot be split"):
        study_from_command(["vllm serve 'm"], "mine")


@pytest.mark.parametrize(
    "flags",
    [
        "--spec-method dflash --spec-model org/d --spec-tokens 7",
        """--spec-tokens 7 --speculative-config '{"method": "dflash", "model": "org/d"}'""",
        "-sc.method dflash -sc.model org/d --spec-tokens=7",
    ],
)
def test_short_forms_of_the_draft_are_owned(flags: str) -> None:
    text = study_from_command(shlex.split(f"vllm serve org/m --seed 0 {flags}"), "mine")
    server = parse_study(text, Path("mine.yaml")).spec.server
    assert server.flags == {"seed": 0}
    assert server.draft_settings({N: 2}) == {"method": "dflash", "model": "org/d", N: 2}
    assert "0: no drafts; today 7" in text


def test_flags_of_the_draft_that_vllm_no_longer_has() -> None:
    text = study_from_command(
        shlex.split(
            "vllm serve org/m --speculative_model org/d --num_speculative_tokens 16 "
            "--speculative-draft-tensor-parallel-size 1 --speculative-disable-mqa-scorer"
        ),
        "mine",
    )
    server = parse_study(text, Path("mine.yaml")).spec.server
    assert server.flags == {}
    assert server.draft_settings({N: 2}) == {
        "model": "org/d",
        "draft_tensor_parallel_size": 1,
        N: 2,
    }
    assert "high: 16" in text
    assert "left out: --speculative-disable-mqa-scorer" in text
    assert "no method is named" in text


@pytest.mark.parametrize(
    ("flags", "draft"),
    [
        ("-sc.method mtp -sc.num_speculative_tokens 3", {"method": "mtp"}),
        (
            """-sc '{"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4}'""",
            {"method": "ngram", "prompt_lookup_max": 4},
        ),
        ("--speculative-model [ngram] --num-speculative-tokens 5", {"method": "ngram"}),
        ("--spec-method suffix", {"method": "suffix"}),
    ],
)
def test_drafts_without_a_model_are_tuned(flags: str, draft: dict[str, object]) -> None:
    spec = study(f"vllm serve org/m {flags}").spec
    assert spec.server.draft_settings({}) == draft
    assert N in spec.space


def test_a_folder_in_speculators_format_is_the_draft_of_its_verifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "speculator"
    folder.mkdir()
    config = {
        "speculators_model_type": "dflash",
        "speculators_config": {
            "proposal_methods": [{"speculative_tokens": 7}],
            "verifier": {"name_or_path": "org/target"},
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    more = "-sc.attention_backend flash_attn -sc.method other"
    text = study_from_command(shlex.split(f"vllm serve ./speculator {more}"), "mine")
    server = parse_study(text, Path("mine.yaml")).spec.server
    assert server.model == "org/target"
    assert server.draft_settings({}) == {
        "attention_backend": "flash_attn",
        "method": "dflash",  # as vLLM: the format decides method and model
        "model": "./speculator",
    }
    assert "; today 7" in text


def test_flags_of_a_server_in_use_are_left_out_and_said() -> None:
    text = study_from_command(
        shlex.split(
            "vllm serve m --ssl-keyfile k.pem --ssl-certfile $CERT --root-path /v --uds /tmp/s "
            "--disable-log-stats --seed 1"
        ),
        "mine",
    )
    assert parse_study(text, Path("mine.yaml")).spec.server.flags == {"seed": 1}
    for flag in ("ssl-keyfile", "ssl-certfile", "root-path", "uds", "disable-log-stats"):
        assert f"# left out: --{flag} (" in text


def test_variables_that_only_the_shell_knows_are_left_out_and_said() -> None:
    text = study_from_command(["export LD_LIBRARY_PATH=/x:$LD_LIBRARY_PATH A=1\nvllm serve m"], "n")
    assert parse_study(text, Path("mine.yaml")).spec.server.env == {"A": "1"}
    assert "left out: LD_LIBRARY_PATH (only your shell knows /x:$LD_LIBRARY_PATH" in text


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("vllm serve m --headless", "--headless: a server without an API"),
        ("vllm serve m --grpc", "--grpc: autotune measures the OpenAI API"),
        ("vllm serve m -dpn 1", "--data-parallel-rank: the server is one of several"),
        ("vllm serve m --nnodes 2 --node-rank 0", "--node-rank: the server is one of several"),
        ("vllm serve m -n 2", "--nnodes: the server is one of several"),
        ("vllm serve m --omni", "vLLM-Omni"),
        (
            """vllm serve m --spec-method x -sc '{"method": "y"}'""",
            "--spec-method: vLLM refuses it next to method",
        ),
        ("missing.sh", "missing.sh: cannot be read"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(command: str, told: str) -> None:
    with pytest.raises(UserError) as e:
        study(command)
    assert told in str(e.value)


def test_a_file_with_the_command(tmp_path: Path) -> None:
    script = tmp_path / "serve.sh"
    script.write_text("#!/bin/sh\nexec vllm serve org/m --seed 3\n")
    spec = parse_study(study_from_command([str(script)], "mine"), Path("mine.yaml")).spec
    assert (spec.server.command, spec.server.model) == (("vllm", "serve"), "org/m")


_PIECES = """vllm serve org/m
--seed 1 -tp -cc.mode {} '{"a":1}' $X ${Y:-1} " ' ; && | > # ( ) docker
run -e uv env -i nice -n bash -c <m> `x` --spec-method mtp services: image: - ~ --config a.yaml"""


@given(
    st.lists(st.sampled_from([*_PIECES.split(), "\n", "\\"]), max_size=14).map(" ".join)
    | st.text(max_size=80)
)
def test_any_text_gives_a_study_or_one_line(text: str) -> None:
    for argv in ([text], text.split(" ")):
        try:
            written = study_from_command(argv, "mine")
        except UserError as e:
            message = str(e)
        else:
            message = written.replace("\n", "")
            with suppress(UserError):  # such as a draft that names no model
                parse_study(written, Path("mine.yaml"))
        assert "\n" not in message
        assert "\ue000" not in message


@pytest.mark.parametrize("as_words", [False, True])
def test_an_empty_word_is_a_value(as_words: bool) -> None:
    text = (
        "docker run --entrypoint '' org/image vllm serve org/m --tool-parser-plugin '' "
        "--enforce-eager"
    )
    study = study_from_command(shlex.split(text) if as_words else [text], "mine")
    assert "--entrypoint '' --network host org/image vllm serve" in study
    assert "tool-parser-plugin: ''" in study


@pytest.mark.parametrize(
    ("draft", "hint"),
    [
        ("--spec-method ngram --spec-tokens 3", False),
        ("--spec-method mtp --spec-tokens 1", False),
        ("--spec-method dflash --spec-model org/d --spec-tokens 3", True),
        ("--spec-model org/d --spec-tokens 3", True),
    ],
)
def test_the_hint_on_block_size_is_for_drafts_that_have_one(draft: str, hint: bool) -> None:
    text = study_from_command(shlex.split(f"vllm serve org/m {draft}"), "mine")
    assert ("block_size" in text) is hint


def test_comments_fit_into_80_columns() -> None:
    command = (
        "source /opt/venv/bin/activate; export HF_TOKEN=$(cat ~/.hf)\n"
        "nohup uv run vllm serve ${MODEL:-org/m} --port ${PORT:-8000} --max-num-batched-tokens 4096"
    )
    for text in (study_from_command([command], "mine"), template("mine")):
        assert max(len(line) for line in text.splitlines() if "#" in line) <= 80
