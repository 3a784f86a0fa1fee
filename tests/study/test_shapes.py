"""Shapes: the catalog, their folders, their tokenizer, and their sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import UserError
from autotune.study.checkpoints import config_of, has_no_weights
from autotune.study.model_size import (
    KvCache,
    kv_cache_of,
    parameters_of,
    weight_bytes,
)
from autotune.study.models import resolve_model
from autotune.study.shapes import (
    Shape,
    config_of_shape,
    scaled_down,
    shape_named,
    shapes,
    stands_for,
    write_shape,
)
from autotune.study.weights import weights_id
from tests.paths import ROOT

GIB = 1 << 30
NAMES = [shape.name for shape in shapes()]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dflash-autotune"


def _written(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "config.json").read_text())
    return found


# -- catalog -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", shapes(), ids=NAMES)
def test_the_size_is_the_published_one(shape: Shape) -> None:
    found = parameters_of(shape.target())
    assert found is not None
    assert found.total == pytest.approx(shape.published, rel=0.03)
    if shape.published_active is not None:
        assert found.active == pytest.approx(shape.published_active, rel=0.03)


def test_the_size_of_llama_is_exact() -> None:
    found = parameters_of(shape_named("llama-3.1-8b").target())
    assert found is not None
    assert found.total == 8_030_261_248


@pytest.mark.parametrize(
    ("name", "gib", "off"),
    [
        # sizes of the published files
        ("gemma-4-26b-a4b", 0.80, 0.005),
        ("gemma-4-31b", 2.86, 0.005),
        ("qwen3.6-27b", 3310.7 / 1024, 0.005),
        ("qwen3.6-35b-a3b", 905 / 1024, 0.005),
        ("llama-3.1-8b", 1.95, 0.005),
    ],
)
def test_a_drafts_size_is_that_of_its_file(name: str, gib: float, off: float) -> None:
    size = weight_bytes(shape_named(name).draft())
    assert size is not None
    assert size / GIB == pytest.approx(gib, rel=off)


@pytest.mark.parametrize("shape", shapes(), ids=NAMES)
def test_a_draft_reads_the_layers_that_dflash_takes(shape: Shape) -> None:
    """z-lab/dflash: evenly from the second layer to the third from the end."""
    target, draft = shape.target(), shape.draft()
    layers, ids = target["num_hidden_layers"], draft["dflash_config"]["target_layer_ids"]
    assert ids == [round(1 + i * (layers - 4) / (len(ids) - 1)) for i in range(len(ids))]
    assert draft["num_target_layers"] == layers
    assert draft["hidden_size"] == target["hidden_size"]
    assert draft["vocab_size"] == target["vocab_size"]
    assert draft["dflash_config"]["mask_token_id"] < target["vocab_size"]
    assert len(draft["layer_types"]) == draft["num_hidden_layers"]
    assert set(shape.derived) <= {*draft, *draft["dflash_config"]}


@pytest.mark.parametrize("shape", shapes(), ids=NAMES)
def test_every_number_has_a_source_and_every_quantization_a_size(shape: Shape) -> None:
    assert set(shape.sources) == {"config", "parameters", "quants", "draft"}
    assert all(shape.sources.values())
    plain = weight_bytes(shape.target("bf16"))
    assert plain is not None
    for quant in shape.quants:
        config = shape.target(quant)
        size = weight_bytes(config)
        assert size is not None
        if quant == "bf16":
            assert "quantization_config" not in config
        else:
            assert 0.2 * plain < size < 0.75 * plain, quant
    layers = shape.target()["num_hidden_layers"]
    assert len(shape.target().get("layer_types") or range(layers)) == layers


def test_bytes_of_a_quantization() -> None:
    """By hand: Qwen3 8B's linear layers, its norms, and what stays bfloat16."""
    shape = shape_named("qwen3-8b")
    linear = 36 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 4096 * 12288)
    ends = 2 * 151936 * 4096
    norms = 4096 + 36 * (2 * 4096 + 2 * 128)
    rows = 36 * (4096 + 2 * 1024 + 4096 + 2 * 12288 + 4096)
    assert weight_bytes(shape.target("bf16")) == 2 * (linear + ends + norms)
    assert weight_bytes(shape.target("w4a16")) == (
        linear // 2 + 2 * linear // 128 + 2 * (ends + norms)
    )
    assert weight_bytes(shape.target("fp8")) == linear + 4 * rows + 2 * (ends + norms)


def test_mxfp4_is_as_large_as_published() -> None:
    """Model card of gpt-oss-20b: a checkpoint of 12.8 GiB."""
    size = weight_bytes(shape_named("gpt-oss-20b").target("mxfp4"))
    assert size is not None
    assert size / GIB == pytest.approx(12.8, rel=0.01)


def test_the_kv_cache_of_a_request() -> None:
    gemma = kv_cache_of(shape_named("gemma-4-26b-a4b").target())
    # 5 layers see all tokens with 2 heads of 512, 25 see a window of 1024 with 8 heads of 256
    assert gemma == KvCache(full=5 * 2 * 2 * 512, sliding=25 * 2 * 8 * 256, window=1024)
    assert gemma is not None
    assert gemma.per_token() == 2 * (10_240 + 102_400)
    assert gemma.of_request(1000) == 1000 * gemma.per_token()
    assert gemma.of_request(4096) == 2 * (10_240 * 4096 + 102_400 * 1024)
    assert gemma.of_request(4096, 1) == gemma.of_request(4096) // 2
    qwen = kv_cache_of(shape_named("qwen3.5-27b").target())
    assert qwen is not None
    # 48 linear layers: a convolution of 3 more tokens, and 48 float32 matrices of 128 × 128
    assert qwen.state_bytes == 48 * (3 * (2 * 2048 + 6144) * 2 + 48 * 128 * 128 * 4)
    assert qwen.of_request(10) == 10 * 16 * 2 * 4 * 256 * 2 + qwen.state_bytes
    draft = kv_cache_of(shape_named("gemma-4-26b-a4b").draft())
    assert draft == KvCache(full=2 * 8 * 128, sliding=4 * 2 * 8 * 128, window=2048)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "novel"},
        {"hidden_size": None},
        {"num_attention_heads": "many"},
        {"layer_types": ["full_attention"], "num_key_value_heads": []},
    ],
)
def test_nothing_is_said_of_an_unknown_model(change: dict[str, Any]) -> None:
    config = {**shape_named("qwen3-8b").target(), **change}
    assert parameters_of(config) is None
    assert weight_bytes(config) is None
    assert kv_cache_of(config) is None


@pytest.mark.parametrize("quant", [{"quant_method": "awq"}, {}, "int4", {"config_groups": []}])
def test_nothing_is_said_of_an_unknown_quantization(quant: object) -> None:
    config = {**shape_named("qwen3-8b").target(), "quantization_config": quant}
    assert weight_bytes(config) is None


def test_a_gemma_with_per_layer_inputs_is_not_known() -> None:
    config = {**shape_named("gemma-4-31b").target(), "hidden_size_per_layer_input": 256}
    assert parameters_of(config) is None


# -- references ----------------------------------------------------------------------------------


def test_a_reference_is_a_folder_in_the_cache_that_is_made_once(cache: Path) -> None:
    target = Path(resolve_model("shape:qwen3-8b:w4a16", Path()))
    assert target.parent == cache
    assert _written(target) == shape_named("qwen3-8b").target("w4a16")
    before = (target / "tokenizer.json").stat().st_mtime_ns
    assert resolve_model("shape:qwen3-8b:w4a16", Path("/nowhere")) == str(target)
    assert (target / "tokenizer.json").stat().st_mtime_ns == before
    draft = Path(resolve_model("shape:qwen3-8b:draft", Path()))
    assert _written(draft) == shape_named("qwen3-8b").draft()
    assert "dflash" in draft.name  # vLLM sees the method of some drafts by their path alone
    assert Path(resolve_model("shape:qwen3-8b", Path())) not in {target, draft}
    assert sorted(p.name for p in cache.iterdir() if ".tmp-" in p.name) == []


def test_a_reference_is_read_without_making_its_folder(cache: Path) -> None:
    assert config_of("shape:gpt-oss-20b", Path()) == shape_named("gpt-oss-20b").target("mxfp4")
    assert config_of("shape:gone", Path()) is None
    assert has_no_weights("shape:gpt-oss-20b", Path())
    assert not cache.exists()


def test_a_reference_says_what_it_stands_for() -> None:
    assert stands_for("shape:gpt-oss-20b:bf16") == "openai/gpt-oss-20b"
    assert stands_for("shape:gpt-oss-20b:draft") == "z-lab/gpt-oss-20b-DFlash"


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("shape:gemma-4-26b", "gemma-4-26b: no such shape; did you mean gemma-4-26b-a4b"),
        ("shape:zzz", "zzz: no such shape; there are gemma-4-26b-a4b, gemma-4-31b"),
        ("shape:qwen3-8b:w8a8", "qwen3-8b has no w8a8; it has bf16, fp8, w4a16"),
        ("shape:gpt-oss-20b:fp8", "gpt-oss-20b has no fp8; it has mxfp4, bf16"),
        ("shape:", ": no such shape; there are "),
    ],
)
def test_a_wrong_reference_is_one_line(cache: Path, ref: str, words: str) -> None:
    for ask in (lambda: config_of_shape(ref), lambda: resolve_model(ref, Path())):
        with pytest.raises(UserError) as e:
            ask()
        assert words in str(e.value)
        assert "\n" not in str(e.value)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"shape:qwen3-8b: cannot be written to .*XDG_CACHE_HOME"):
        resolve_model("shape:qwen3-8b", Path())


def test_a_model_that_is_still_to_be_fetched_is_no_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository, commit = tmp_path / "models--org--m", "0" * 40
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert config_of("org/m", tmp_path) == {}
    assert not has_no_weights("org/m", tmp_path)


def test_a_shape_is_known_by_its_config(tmp_path: Path) -> None:
    write_shape(shape_named("qwen3-8b"), tmp_path / "a", tiny=True)
    write_shape(shape_named("qwen3-8b"), tmp_path / "b", tiny=True)
    write_shape(shape_named("llama-3.1-8b"), tmp_path / "c", tiny=True)
    one = weights_id(tmp_path / "a" / "target")
    assert one is not None
    assert weights_id(tmp_path / "b" / "target") == one
    assert weights_id(tmp_path / "c" / "target") not in {one, None}
    assert has_no_weights("a/target", tmp_path)
    (tmp_path / "a" / "target" / "model.safetensors").write_bytes(b"x")
    assert not has_no_weights("a/target", tmp_path)
    assert weights_id(tmp_path / "a" / "target") != one
    assert not has_no_weights("gone", tmp_path)
    assert not has_no_weights("demo:target", tmp_path)


# -- folders -------------------------------------------------------------------------------------


def test_folders_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    shape = shape_named("gemma-4-26b-a4b")
    made = write_shape(shape, tmp_path / "new" / "g", quant="fp8", tiny=True, draft=False)
    assert made.draft is None
    assert {p.name for p in (tmp_path / "new" / "g").iterdir()} == {"target"}
    with pytest.raises(UserError, match="exists already; give another --out"):
        write_shape(shape, tmp_path / "new" / "g")
    with pytest.raises(UserError, match="has no w8a8"):
        write_shape(shape, tmp_path / "other", quant="w8a8")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written: .*; give another --out"):
        write_shape(shape, tmp_path / "file" / "g", tiny=True)
    assert {p.name for p in tmp_path.iterdir()} == {"new", "file"}


def test_a_tokenizer_is_copied(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    shape = shape_named("qwen3-8b")
    with pytest.raises(UserError, match=r"own has no tokenizer \(tokenizer\.json or"):
        write_shape(shape, tmp_path / "s", tokenizer=own)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md"):
        (own / name).write_text(name)
    for torn in ("tokenizer.json", "[" * 100_000, '{"model": {"vocab": {"a": 1e999}}}'):
        (own / "tokenizer.json").write_text(torn)
        with pytest.raises(UserError, match=r"tokenizer\.json cannot be read as a tokenizer"):
            write_shape(shape, tmp_path / "s", tokenizer=own)
    large = ({"a": 151_936}, []), ({"a": 0}, [{"id": 200_000}]), (["a"] * 151_937, [])
    small = ({"a": 128_255}, []), (["a"] * 32_000, [{"id": 32_001}])
    for ids, added in (*large, *small):
        (own / "tokenizer.json").write_text(
            json.dumps({"model": {"vocab": ids}, "added_tokens": added})
        )
        with pytest.raises(UserError, match="is of another model: it has ids up to"):
            write_shape(shape, tmp_path / "s", tokenizer=own)
    assert not (tmp_path / "s").exists()
    given = '{"model": {"vocab": {"a": 151935}}}'
    (own / "tokenizer.json").write_text(given)
    made = write_shape(shape, tmp_path / "s", tokenizer=own)
    assert (made.target / "tokenizer.json").read_text() == given
    assert (made.target / "generation_config.json").read_text() == "generation_config.json"
    assert not (made.target / "README.md").exists()


def test_the_tokenizer_has_a_text_for_every_id(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = write_shape(shape_named("gemma-4-26b-a4b"), tmp_path / "g", tiny=True)
    found = tokenizers.Tokenizer.from_file(str(made.target / "tokenizer.json"))
    size = _written(made.target)["vocab_size"]
    assert found.get_vocab_size() == size
    text = "Grüße, 世界! \n\t  x = 1"
    ids = found.encode(text).ids
    assert len(ids) == len(text.encode())
    assert found.decode(ids) == text
    assert all(found.id_to_token(i) for i in range(size))
    assert found.decode([300, 20_000, size - 1]) == " t300 t20000 t32767"
    assert found.decode([1, 2, 300], skip_special_tokens=True) == " t300"


def test_a_scaled_down_shape_keeps_its_architecture() -> None:
    for shape in shapes():
        target, draft = scaled_down(shape.target(), shape.draft())
        assert target["architectures"] == shape.target()["architectures"]
        kinds = shape.target().get("layer_types")
        assert kinds is None or set(target["layer_types"]) == set(kinds)
        assert max(draft["dflash_config"]["target_layer_ids"]) < target["num_hidden_layers"]
        size, small = weight_bytes(target), weight_bytes(draft)
        assert size is not None
        assert small is not None
        assert size + small < 0.2 * GIB


_ARCHITECTURES = ("gemma-4-26b-a4b", "qwen3.5-27b", "qwen3.5-35b-a3b", "gpt-oss-20b")


def _kept() -> dict[str, Any]:
    path = ROOT / "benchmarks" / "data" / "shapes_in_vllm.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("shape", shapes(), ids=NAMES)
def test_vllm_took_every_shape(shape: Shape) -> None:
    """What benchmarks/shapes_in_vllm.py was told is of the catalog as it is."""
    body = _kept()[shape.name]
    assert list(body["quants"]) == list(shape.quants)
    cache = kv_cache_of(shape.target())
    assert cache is not None
    assert body["kv_bytes_per_token"] == cache.per_token()
    plain = body["quants"]["bf16"]
    assert plain["parameters_in_transformers"] == plain["parameters"]
    for quant, got in body["quants"].items():
        assert got["unknown_keys"] == {"target": [], "draft": []}
        assert [got["architecture"]] == shape.target()["architectures"]
        assert (got["draft_architecture"], got["method"]) == ("DFlashDraftModel", "dflash")
        assert (got["quantization"] is None) == (quant == "bf16")
        assert got["layers"] == shape.target()["num_hidden_layers"]
        assert got["vocabulary"] == shape.target()["vocab_size"]
        assert got["weights_bytes"] == weight_bytes(shape.target(quant))


@pytest.mark.vllm
def test_transformers_has_the_parameters_of_a_shape(tmp_path: Path) -> None:
    """Every key is known to a configuration class, and the model has this many parameters."""
    out, script = tmp_path / "found.json", ROOT / "benchmarks" / "shapes_in_vllm.py"
    done = subprocess.run(
        # one of each architecture
        [sys.executable, str(script), *_ARCHITECTURES, "--no-vllm", "--out", str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert list(found) == list(_ARCHITECTURES)
    for body in found.values():
        for got in body["quants"].values():
            assert got["unknown_keys"] == {"target": [], "draft": []}
        plain = body["quants"]["bf16"]
        assert plain["parameters"] == plain["parameters_in_transformers"]
