"""Commands in Markdown, JSON arrays, Dockerfiles, units of systemd and other shells' texts."""

from __future__ import annotations

import json

import pytest

from autotune.errors import UserError
from autotune.study.from_command import study_from_command
from autotune.study.start import Start, start_of

DRAFT = {"method": "dflash", "model": "org/d", "num_speculative_tokens": 7}


def read(text: str) -> Start:
    return start_of([text])


@pytest.mark.parametrize(
    "text",
    [
        "```bash\nvllm serve org/m \\\n  --seed 1\n```\n",
        "~~~\nvllm serve org/m --seed 1\n~~~",
        "vllm serve org/m `\n  --seed 1",
        "vllm serve org/m ^\r\n  --seed 1\r\n",
        '["vllm", "serve", "org/m", "--seed", "1"]',
        'FROM img\nCMD vllm serve org/m --seed 1\n',
        'FROM img\nENTRYPOINT ["vllm", "serve"]\nCMD ["org/m", "--seed", "1"]\n',
        'FROM a\nCMD ["old"]\nFROM b\nRUN x \\\n  y\nCMD ["vllm", "serve", "org/m", "--seed", "1"]',
        'FROM img\nENTRYPOINT ["/bin/sh", "-c", "vllm serve org/m --seed 1"]\n',
        'FROM img\nENTRYPOINT vllm serve org/m --seed 1\nCMD ["of", "no", "use"]\n',
        'FROM vllm/vllm-openai\nCMD ["org/m", "--seed", "1"]\n',
        "ARG M=org/m\nFROM img\nARG M=org/m\nCMD vllm serve $M --seed 1\n",
        "[Service]\nExecStart=-vllm serve org/m \\\n  # a comment\n  --seed 1\nRestart=always\n",
        "[Service]\nExecStart=\nExecStart=/bin/sh -c 'exec vllm serve org/m --seed 1'\n",
        "[Service]\nEnvironment=M=org/m\nExecStart=vllm serve ${M} --seed 1\n",
        "ExecStart=vllm serve org/m --seed 1",
        'eval "vllm serve org/m --seed 1"',
        "`vllm serve org/m --seed 1`",
        '"vllm serve org/m --seed 1"',
        "%%bash\n!vllm serve org/m --seed 1",
        "\ufeffvllm serve\u00a0org/m --seed\u202f1",
        "vllm serve org/m --seed\u200b 1\u3000",
        "CMD='vllm serve \"org/m\" --seed 1'\neval $CMD",
    ],
)  # fmt: skip
def test_forms_of_one_command(text: str) -> None:
    found = read(text)
    assert (found.command, found.arguments) == (["vllm", "serve"], ["org/m", "--seed", "1"])


@pytest.mark.parametrize(
    "text",
    [
        '$env:HF_HOME = "/a b"; vllm serve org/m',
        "set HF_HOME=/a b&& vllm serve org/m",
        'set "HF_HOME=/a b"\nvllm serve org/m',
        "set -gx HF_HOME '/a b'\nvllm serve org/m",
        'FROM img\nENV HF_HOME /a b\nCMD ["vllm", "serve", "org/m"]\n',
        'FROM img\nENV OTHER=1 \\\n  HF_HOME="/a b"\nCMD vllm serve org/m\n',
        '[Service]\nEnvironment="HF_HOME=/a b" OTHER=1\nExecStart=vllm serve org/m\n',
    ],
)
def test_variables_of_each_form(text: str) -> None:
    assert read(text).env["HF_HOME"] == "/a b"


def test_options_of_a_shell_set_no_variable() -> None:
    assert read("set -x\nset -euo pipefail\nvllm serve org/m").env == {}


def test_a_draft_in_a_unit() -> None:
    text = f"[Service]\nExecStart=/v/vllm serve org/m --speculative-config '{json.dumps(DRAFT)}'\n"
    study = study_from_command([text], "s")
    assert "method: dflash" in study
    assert "today 7" in study


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('FROM img\nCMD ["--model", "org/m"]\n', "has no ENTRYPOINT"),
        ('FROM img\nCMD ["/start.sh"]\n', "is no command that starts vLLM"),
        ("ssh gpu1 'vllm serve org/m'", "give the command in the quotes alone"),
        ("tmux new -d -s v 'vllm serve org/m'", "give the command in the quotes alone"),
        ("vllm serve org/m --seed “1”", "has quotation marks of print"),
        ("vllm serve “org/m”", "has quotation marks of print"),
        ("vllm serve org/m −−seed 1", "begins with a dash of print"),
        ("vllm serve org/m -‐seed 1", "begins with a dash of print"),
        ("vllm serve org/m --se\u0301ed 1", "no flag has such a name"),
        ("vllm serve '$MODEL'", "which no shell replaces here"),
        ("srun -N1 vllm serve org/m", "Run autotune inside the allocation"),
    ],
)
def test_refused_in_one_line(text: str, why: str) -> None:
    with pytest.raises(UserError) as e:
        study_from_command([text], "s")
    assert why in str(e.value)
    assert "\n" not in str(e.value)


SECRET = "hf_" + "aB3" * 11


@pytest.mark.parametrize(
    "text",
    [
        f'$env:HF_TOKEN="{SECRET}"; vllm serve org/m',
        f"set HF_TOKEN={SECRET}\nvllm serve org/m",
        f"A.HF_TOKEN={SECRET}; HF_TOKEN = {SECRET}; vllm serve org/m",
        f"HF_TOKEN: {SECRET}\nvllm serve org/m",
        f"FROM img\nENV HF_TOKEN={SECRET}\nCMD vllm serve org/m\n",
        f"[Service]\nEnvironment=HF_TOKEN={SECRET}\nExecStart=vllm serve org/m\n",
        f"PLAIN={SECRET} vllm serve org/m",
        f"vllm serve org/m 2>https://u:{SECRET}@host/x",
        f"docker run -e PLAIN={SECRET} vllm/vllm-openai --model org/m",
    ],
)
def test_no_form_brings_a_secret_into_the_study(text: str) -> None:
    study = study_from_command([text], "s")
    assert "model: org/m" in study
    assert SECRET not in study


def test_a_short_secret_is_one_and_a_count_of_tokens_is_none() -> None:
    text = "HF_TOKEN=abc TOKENIZERS_PARALLELISM=false MAX_TOKENS=4096 vllm serve org/m"
    study = study_from_command([text], "s")
    assert "abc" not in study
    assert "TOKENIZERS_PARALLELISM: 'false'" in study
    assert "MAX_TOKENS: '4096'" in study


@pytest.mark.parametrize(
    "text",
    [
        """vllm serve org/m --model-loader-extra-config '{"aws_secret_access_key": "abcd"}'""",
        f"""vllm serve org/m --hf-overrides '{{"x": "{SECRET}"}}'""",
        f"vllm serve s3://user:{SECRET}@host/m",
        f"uv run --index-url https://u:{SECRET}@host/simple vllm serve org/m",
        f"ssh -i {SECRET} https://u:{SECRET}@h 'vllm serve org/m'",
    ],
)
def test_a_secret_in_a_flag_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UserError) as e:
        study_from_command([text], "s")
    assert SECRET not in str(e.value)


def test_an_empty_value_stays_one() -> None:
    words = ["vllm", "serve", "org/m", "--reasoning-parser", "", "\n", "--seed", "1"]
    assert start_of(words).arguments == ["org/m", "--reasoning-parser", "", "--seed", "1"]
