"""`autotune shape`: the catalog, the folders that it writes, and its mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from autotune.cli.main import main
from autotune.study.shapes import shapes


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(*args: str) -> Result:
    return CliRunner().invoke(main, ["shape", *args])


@pytest.mark.parametrize("words", [[], ["--list"], ["qwen3-8b", "--list"]])
def test_the_catalog(words: list[str], tmp_path: Path) -> None:
    result = call(*words)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [x.split()[0] for x in lines if "billion parameters" in x and x[0] != " "] == [
        shape.name for shape in shapes()
    ]
    assert "gemma-4-26b-a4b  25.2 billion parameters (3.8 active)" in lines
    assert "  weights  w4a16 14.2 GiB, fp8 24.3 GiB, bf16 47.0 GiB" in lines
    assert "  draft    0.43 billion parameters, 0.80 GiB, block of 16" in lines
    assert "  source   google/gemma-4-26B-A4B-it" in lines
    assert "           z-lab/gemma-4-26B-A4B-it-DFlash" in lines
    assert "           derived: mask_token_id, rope_theta, max_position_embeddings" in lines
    assert max(map(len, lines)) <= 80
    assert list(tmp_path.iterdir()) == []


def test_the_catalog_as_json() -> None:
    found = json.loads(call("--json").stdout)
    assert list(found) == [shape.name for shape in shapes()]
    gemma = found["gemma-4-26b-a4b"]
    assert gemma["draft"]["derived"] == []
    assert set(gemma["sources"]) == {"config", "parameters", "quants", "draft"}
    assert gemma["kv_bytes_per_token"] == 225_280
    assert found["qwen3-8b"]["active_parameters"] is None


def test_folders_and_what_to_do_with_them(tmp_path: Path) -> None:
    result = call("gpt-oss-20b")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "gpt-oss-20b-mxfp4"
    assert {p.name for p in folder.iterdir()} == {"target", "dflash"}
    assert "wrote gpt-oss-20b-mxfp4/target: the shape of openai/gpt-oss-20b, 20.9 billion" in (
        result.stdout
    )
    assert "--load-format dummy" in result.stdout
    config = json.loads((folder / "target" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "mxfp4"
    result = call("GPT-OSS-20b", "--quant", "bf16", "--no-draft", "--out", "x/y", "--tiny")
    assert result.exit_code == 0, result.output
    assert {p.name for p in (tmp_path / "x" / "y").iterdir()} == {"target"}
    assert "speculative" not in result.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["gemma-4-27b"], "gemma-4-27b: no such shape; did you mean gemma-4-31b or"),
        (["Gemma"], "Gemma: no such shape; did you mean gemma-4-26b-a4b or gemma-4-31b?"),
        (["qwen3-8b", "--quant", "int8"], "qwen3-8b has no int8; it has bf16, fp8, w4a16"),
        (["qwen3-8b", "--out", "there"], "there: exists already; give another --out"),
        (["qwen3-8b", "--tokenizer", "there"], "--tokenizer: there has no tokenizer ("),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, args: list[str], words: str) -> None:
    (tmp_path / "there").mkdir()
    result = call(*args)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_the_page_has_the_catalog() -> None:
    page = (Path(__file__).parents[2] / "docs" / "shapes.md").read_text(encoding="utf-8")
    for name, shape in json.loads(call("--json").stdout).items():
        weights = ", ".join(f"{q} {b / 2**30:.1f}" for q, b in shape["weights_bytes"].items())
        draft = f"{shape['draft']['weights_bytes'] / 2**30:.2f}"
        cache = f"{shape['kv_bytes_per_token'] / 1024:.0f}"
        assert f"| `{name}` | {weights} | {draft} | {cache} |" in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "x"], "--out goes with the NAME of a shape to write"),
        (["--quant", "fp8"], "--quant goes with the NAME"),
        (["qwen3-8b", "--quant", ""], "qwen3-8b has no ; it has bf16, fp8, w4a16"),
    ],
)
def test_no_option_is_ignored(words: list[str], said: str, tmp_path: Path) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_was_not_checked_is_told(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "tokenizer.model").write_text("aGVsbG8= 1\n")
    result = call("qwen3-8b", "--tokenizer", "there", "--out", "x")
    assert result.exit_code == 0, result.output
    assert "there/tokenizer.model was not compared with the model's vocabulary: " in result.output
