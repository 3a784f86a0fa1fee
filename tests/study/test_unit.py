"""systemd units as a source of the start command: what is taken, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.errors import UserError
from autotune.study.files import parse_study
from autotune.study.from_command import study_from_command
from autotune.study.start import start_of
from autotune.study.unit import is_unit, unit_of

UNIT = r"""# a server
[Unit]
Description=vLLM

[Service]
User=vllm
WorkingDirectory=/srv
Environment="OMP_NUM_THREADS=4" VLLM_USE_V1=1
Environment=LEN=4096
EnvironmentFile=-/etc/vllm.env
CPUAffinity=0-7
ExecStartPre=/usr/bin/sleep 1
ExecStart=
ExecStart=-/opt/v/bin/vllm serve org/target \
  # a comment between joined lines
  --max-model-len ${LEN} --chat-template 100%%.jinja \
  --speculative-config '{"method": "mtp", "num_speculative_tokens": 2}'
Restart=always
"""


def test_a_unit_becomes_a_study(tmp_path: Path) -> None:
    file = tmp_path / "vllm.service"
    file.write_text(UNIT)
    for given in (UNIT, str(file)):
        text = study_from_command([given], "mine")
        server = parse_study(text, tmp_path / "mine.yaml").spec.server
        assert server.command == ("/opt/v/bin/vllm", "serve")
        assert server.model == "org/target"
        assert server.flags == {"max_model_len": 4096, "chat_template": "100%.jinja"}
        assert server.speculative is not None
        assert server.speculative.method == "mtp"
        assert server.env == {"OMP_NUM_THREADS": "4", "VLLM_USE_V1": "1", "LEN": "4096"}
        for left in ("User=", "WorkingDirectory=", "EnvironmentFile=", "CPUAffinity="):
            assert f"# left out: {left}" in text


@pytest.mark.parametrize(
    "pasted",
    [
        ["ExecStart=/opt/v/bin/vllm serve org/m --seed 1"],
        ["ExecStart = @/opt/v/bin/vllm serve org/m \\\n  --seed 1"],
        ["ExecStart=/opt/v/bin/vllm", "serve", "org/m", "--seed", "1"],
        ["ExecStart=/bin/bash -c 'source /x/activate && /opt/v/bin/vllm serve org/m --seed 1'"],
    ],
)
def test_a_line_of_a_unit(pasted: list[str]) -> None:
    start = start_of(pasted)
    assert start.command == ["/opt/v/bin/vllm", "serve"]
    assert start.arguments == ["org/m", "--seed", "1"]
    assert "ExecStart" not in start.env


def test_variables_of_a_unit() -> None:
    unit = unit_of(
        'Environment="MORE=--seed 1"\nExecStart=/v serve m $MORE "$$A" x${MORE}\n'
        "ExecStart=:/v serve $MORE\n"
    )
    assert unit.commands == [
        ["/v", "serve", "m", "--seed", "1", "$A", "x--seed 1"],
        ["/v", "serve", "$MORE"],
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ExecStart=/v/vllm serve %h/model", "only systemd knows what %h is"),
        ("ExecStart=/v/vllm serve m$MODEL ${MODEL}", r"\$\{MODEL\}"),
        (r'ExecStart=/v/vllm serve "a\x20b"', r"\\x of the unit is not understood"),
        ("ExecStart=/v/vllm serve 'm", "a quote does not end"),
        ("[Service]\nExecStart=/v/vllm serve a\nExecStart=/v/vllm serve b", "starts vLLM 2 times"),
        ("[Service]\nExecStart=/usr/bin/nginx", "is no command that starts vLLM"),
        ("[Service]\nUser=vllm", "is no command that starts vLLM"),
    ],
)
def test_what_only_systemd_knows_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        study_from_command([text], "mine")
    assert "\n" not in str(caught.value)


def test_a_shell_test_is_no_unit() -> None:
    assert not is_unit("[ -f x ] && vllm serve m")
    assert not is_unit("cat > u.service <<E\n[Service]\nExecStart=/v serve m\nE")
