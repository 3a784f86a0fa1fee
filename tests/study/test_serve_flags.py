"""Arguments of ``vllm serve`` are read as vLLM's own parser reads them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import UserError
from autotune.study.from_command import study_from_command
from autotune.study.serve_flags import Arguments, arguments_of


def read(command: str, base: Path = Path(), *, console: bool = True) -> Arguments:
    return arguments_of(shlex.split(command), console=console, base=base)


@pytest.mark.parametrize(
    "command",
    [
        "org/m --host 0.0.0.0 --enforce-eager",
        "--host 0.0.0.0 org/m --enforce-eager",
        "--enforce-eager org/m --host=0.0.0.0",
        "--host 0.0.0.0 --enforce-eager org/m",
        "--model org/m --host 0.0.0.0 --enforce-eager",
        "--host 0.0.0.0 --enforce-eager -- org/m",
    ],
)
def test_the_model_stands_anywhere(command: str) -> None:
    found = read(command)
    assert found.model == "org/m"
    assert found.flags == {"host": "0.0.0.0", "enforce-eager": True}  # noqa: S104


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("--max-num-se 8", {"max-num-seqs": 8}),  # an abbreviation
        ("--tensor_parallel 2", {"tensor-parallel-size": 2}),
        ("--max_model_len=4k", {"max-model-len": "4k"}),
        ("-tp 2 -pp=3 -n2 -q fp8", {
            "tensor-parallel-size": 2, "pipeline-parallel-size": 3, "nnodes": 2,
            "quantization": "fp8",
        }),
        ("-dc '{}'", {"diffusion-config": {}}),
        ("-O3", {"optimization-level": 3}),
        ("-O 2", {"optimization-level": 2}),
        ("-O=1", {"optimization-level": 1}),
        ("--seed -1", {"seed": -1}),
        ("--no-enable-prefix-caching", {"enable-prefix-caching": False}),
        ("--device-memory-utilization 0.90", {"gpu-memory-utilization": 0.9}),
        ("--served-model-name 1.10 1e5 2024", {"served-model-name": ["1.10", "1e5", 2024]}),
        ("--revision 1e5 --tokenizer 007", {"revision": "1e5", "tokenizer": "007"}),
        ("--chat-template '{{ x }}'", {"chat-template": "{{ x }}"}),
        ("--cudagraph-capture-sizes 1 2 4", {"cudagraph-capture-sizes": [1, 2, 4]}),
        ("--middleware a.b --middleware c.d", {"middleware": ["a.b", "c.d"]}),
        ("--disable-log-requests", {"disable-log-requests": True}),  # a switch of an older vLLM
        ("--swap-space 4", {"swap-space": 4}),
        ("--x-of-another-vllm a 1", {"x-of-another-vllm": ["a", 1]}),
    ],
)  # fmt: skip
def test_flags(command: str, flags: dict[str, Any]) -> None:
    found = read(f"org/m {command}")
    assert found.model == "org/m"
    assert found.flags == flags


@pytest.mark.parametrize(
    ("command", "value"),
    [
        ("-cc.mode 3 -cc.backend=eager", {"mode": 3, "backend": "eager"}),
        (
            "-cc.a true -cc.b null -cc.c [1,2] -cc.d 4k",
            {"a": True, "b": None, "c": [1, 2], "d": 4000},
        ),
        ("-cc.a.b.c x -cc.a.b.d y", {"a": {"b": {"c": "x", "d": "y"}}}),
        ("-cc.l+ a -cc.l+ b,c", {"l": ["a", "b", "c"]}),
        ("-cc.a.b 1 -cc.a '{\"c\": 2}'", {"a": {"b": 1, "c": 2}}),
        ("-cc.mode --seed", {"mode": "--seed"}),  # the next word, whatever it is
    ],
)
def test_keys_with_dots_are_one_value(command: str, value: object) -> None:
    assert read(f"org/m {command}").flags == {"compilation-config": value}


def test_json_and_dots_do_not_merge_and_it_is_said() -> None:
    found = read("""org/m -cc '{"mode": 3, "a": {"b": 1, "c": 2}}' -cc.a.b 5""")
    assert found.flags == {"compilation-config": {"a": {"b": 5}}}
    assert "the command loses mode, a.c today" in found.notes[0]


def test_two_spellings_with_dots_do_not_merge_either() -> None:
    found = read("org/m --compilation-config.mode 3 -cc.backend eager")
    assert found.flags == {"compilation-config": {"backend": "eager"}}
    assert "loses mode" in found.notes[0]


def test_the_last_of_a_repeated_flag_counts_and_the_first_is_named() -> None:
    found = read(
        "org/m --seed 1 --seed 2 --enforce-eager --no-enforce-eager --api-key a --api-key b"
    )
    assert found.flags == {"seed": 2, "enforce-eager": False, "api-key": "b"}
    assert found.notes == [
        "--seed is given twice: vLLM drops the first, 1",
        "--enforce-eager is given twice: vLLM drops the first, true",
        "--api-key is given twice: vLLM drops the first",
    ]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("org/m -tp2", "-tp2: is no short flag of vLLM; write -tp 2"),
        ("org/m -zz 1", "-zz: is no short flag"),
        ("org/m -O '{}'", "takes 0 to 3"),
        ("org/m --max-num 8", "vLLM would not know which flag this is short for"),
        ("org/m --enforce-eager=true", "is a switch, for which vLLM takes no value"),
        ("org/m --enforce-eager true", "`true` belongs to no flag"),
        ("org/m --max-model-len --seed 1", "--max-model-len: needs a value"),
        ("org/m -cc.mode", "-cc.mode: needs a value"),
        ("org/m –seed 1", "begins with a dash of print"),
        ("org/m -cc '{mode: 3}'", "is not JSON"),
        ("org/a --model org/b", "`org/a` belongs to no flag"),
        ("--flag-of-another-vllm org/m", "unless it is the word after --flag-of-another-vllm"),
        ("org/m --seed ...", "--seed: ... is a placeholder"),
        ("'[MODEL]'", "[MODEL] is a placeholder"),
        ("'<model>'", "<model> is a placeholder"),
        ("org/m --config=a.yaml", "only as `--config FILE`"),
        ("org/m --config a.yaml", "--config: a.yaml cannot be read: No such file"),
        ("org/m --config a.json", "takes a .yaml or .yml file"),
        ("org/m --config", "--config: needs a file"),
    ],
)
def test_what_vllm_would_refuse_is_one_line(command: str, told: str) -> None:
    with pytest.raises(UserError) as e:
        read(command)
    assert told in str(e.value)
    assert "\n" not in str(e.value)


def test_the_module_takes_no_model_without_a_flag() -> None:
    with pytest.raises(UserError, match="vLLM would serve its default in place of org/m"):
        read("org/m", console=False)


def test_a_config_file_is_read_as_vllm_reads_it(tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text(
        "model: org/other\nmax-num-seqs: 4\nseed: 1\nenforce-eager: true\n"
        "enable-prefix-caching: false\nheadless: false\nserved-model-name: [a, b]\n"
        "compilation-config: {mode: 3, custom_ops: [all]}\n"
    )
    found = read("org/m --config serve.yaml --seed 2", tmp_path)
    assert found.model == "org/m"
    assert found.flags == {
        "max-num-seqs": 4,
        "enforce-eager": True,
        "enable-prefix-caching": False,
        "served-model-name": ["a", "b"],
        "compilation-config": {"mode": 3, "custom_ops": ["all"]},
        "seed": 2,
    }
    assert "--seed is given twice: vLLM drops the first, 1" in found.notes
    assert read("--config serve.yaml", tmp_path).model == "org/other"
    (tmp_path / "bad.yaml").write_text("[1, 2]")
    with pytest.raises(UserError, match="must be a mapping"):
        read("org/m --config bad.yaml", tmp_path)


def test_a_former_flag_is_no_abbreviation() -> None:
    assert read("org/m --device cuda").flags == {"device": "cuda"}


def test_a_model_in_one_word_with_its_flags() -> None:
    with pytest.raises(UserError, match="flags included; take the quotes away"):
        read("'org/m --seed 1'")


def test_a_process_substitution_is_no_value() -> None:
    with pytest.raises(UserError, match="--chat-template: "):
        study_from_command(["vllm serve org/m --chat-template <(echo x)"], "s")
