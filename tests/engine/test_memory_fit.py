"""What a model without weights needs, and that it is refused in one line before a launch."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from autotune.engine.gpus import Gpu
from autotune.engine.memory_fit import need_of, unchecked_tokenizer, why_no_weights, why_too_large
from autotune.engine.probe import UNKNOWN, VllmInfo
from autotune.study.files import LoadedStudy, parse_study
from autotune.study.model_size import kv_cache_of, weight_bytes
from autotune.study.shapes import shape_named
from autotune.study.space import N
from tests.studies import autotune, write_study

GIB = 1 << 30
RTX = Gpu("NVIDIA GeForce RTX 4090", 24 * GIB, (8, 9))
H200 = Gpu("NVIDIA H200", 140 * GIB, (9, 0))
CUDA = replace(UNKNOWN, device="cuda")
CPU = replace(UNKNOWN, device="cpu")
GEMMA = "shape:gemma-4-26b-a4b"


def _study(
    model: str = f"{GEMMA}:w4a16", draft: str | None = f"{GEMMA}:draft", **server: Any
) -> LoadedStudy:
    space, draft_weights = server.pop("space", {}), server.pop("draft_weights", None)
    raw = {
        "name": "s",
        "server": {"model": model, **server},
        "space": {"max_num_batched_tokens": {"type": "pow2", "low": 256, "high": 512}, **space},
        "workload": {
            "max_concurrency": 1,
            "random": {"input_len": 16},
            "output_len": 8,
            "num_prompts": 8,
        },
    }
    if draft_weights is not None:
        raw["rehearsal"] = {"weights": {"target": "dummy", "draft": draft_weights}}
        raw["workload"]["ignore_eos"] = True
    raw["server"].setdefault("flags", {"load-format": "dummy", "max-model-len": 2048})
    if draft is not None:
        raw["server"]["speculative"] = {"method": "dflash", "model": draft, N: 1}
    return parse_study(yaml.safe_dump(raw), Path("s.yaml"))


def _on(gpu: Gpu) -> VllmInfo:
    return replace(CUDA, gpus=(gpu,))


def test_a_shape_that_fits() -> None:
    loaded = _study()
    assert why_too_large(loaded, _on(RTX), None) is None
    need = need_of(loaded)
    assert need is not None
    config = shape_named("gemma-4-26b-a4b").target("w4a16")
    cache = kv_cache_of(config)
    assert cache is not None
    assert need.target == weight_bytes(config)
    assert need.draft == weight_bytes(shape_named("gemma-4-26b-a4b").draft())
    assert need.cache == cache.of_request(2048)


def test_a_shape_that_does_not_fit_is_one_line() -> None:
    loaded = _study(f"{GEMMA}:bf16")
    line = why_too_large(loaded, _on(RTX), None)
    assert line == (
        f"server.model: {GEMMA}:bf16 needs at least 48.1 GiB (weights 47.0 GiB, draft 0.8 GiB, "
        "KV cache 0.2 GiB for one request of 2048 tokens), and there are 22.1 GiB (24.0 GiB of "
        "the NVIDIA GeForce RTX 4090 × gpu-memory-utilization 0.92); take a quantization with "
        "fewer bits, a smaller model, a shorter max-model-len or more GPUs (tensor-parallel-size)"
    )
    assert why_too_large(loaded, _on(H200), None) is None


@pytest.mark.parametrize(
    ("flags", "fits"),
    [
        ({"tensor-parallel-size": 2}, False),
        ({"tensor-parallel-size": 4}, True),
        ({"pipeline-parallel-size": 4}, True),
        ({"cpu-offload-gb": 40}, True),
        ({"gpu-memory-utilization": 0.1}, False),
        ({"quantization": "fp8"}, True),  # made on the way in: its size is not known
    ],
)
def test_workers_share_it(flags: dict[str, Any], fits: bool) -> None:
    loaded = _study(f"{GEMMA}:bf16", flags={"load-format": "dummy", "max-model-len": 99, **flags})
    assert (why_too_large(loaded, _on(RTX), None) is None) == fits


def test_searched_flags_are_taken_as_they_fit_best() -> None:
    space = {"tensor-parallel-size": {"type": "choice", "choices": [1, 4]}}
    assert why_too_large(_study(f"{GEMMA}:bf16", space=space), _on(RTX), None) is None
    space = {"gpu-memory-utilization": {"type": "float", "low": 0.5, "high": 0.6}}
    line = why_too_large(_study(f"{GEMMA}:w4a16", space=space), _on(RTX), None)
    assert line is not None
    assert "× gpu-memory-utilization 0.6" in line


def test_a_fixed_kv_cache_counts_against_the_whole_memory() -> None:
    flags = {"load-format": "dummy", "gpu-memory-utilization": 0.2}
    fixed = {**flags, "kv-cache-memory-bytes": 4 * GIB}
    assert why_too_large(_study(flags=fixed), _on(RTX), None) is None
    fixed["kv-cache-memory-bytes"] = 10 * GIB
    line = why_too_large(_study(flags=fixed), _on(RTX), None)
    assert line is not None
    assert "KV cache 10.0 GiB (kv-cache-memory-bytes)" in line
    assert "24.0 GiB (memory of the NVIDIA GeForce RTX 4090)" in line
    # a word such as 4G is not read, and nothing is refused for it
    assert (
        why_too_large(_study(flags={**fixed, "kv-cache-memory-bytes": "10G"}), _on(RTX), None)
        is None
    )


def test_the_longest_sequence_is_the_models_own_without_a_flag() -> None:
    loaded = _study("shape:llama-3.1-8b:bf16", None, flags={"load-format": "dummy"})
    need = need_of(loaded)
    assert need is not None
    assert need.cache == 131_072 * 131_072  # 32 layers × 2 × 8 heads × 128 × 2 bytes a token
    half = _study(
        "shape:llama-3.1-8b:bf16", None, flags={"load-format": "dummy", "kv-cache-dtype": "fp8"}
    )
    halved = need_of(half)
    assert halved is not None
    assert halved.cache == need.cache // 2
    chosen = _study(
        "shape:llama-3.1-8b:bf16", None, flags={"load-format": "dummy", "max-model-len": -1}
    )
    small = need_of(chosen)
    assert small is not None
    assert small.cache == 0


def test_a_cpu_has_the_memory_of_the_machine() -> None:
    line = why_too_large(_study(), CPU, 8 * GIB)
    assert line is not None
    assert "and there are 8.0 GiB (memory of this machine); take a quantization" in line
    assert line.endswith("or a GPU")
    assert why_too_large(_study(), CPU, 64 * GIB) is None


@pytest.mark.parametrize("info", [UNKNOWN, CUDA, CPU, replace(UNKNOWN, device="tpu")])
def test_nothing_is_refused_where_the_memory_is_unknown(info: VllmInfo) -> None:
    assert why_too_large(_study("shape:gemma-4-31b:bf16"), info, None) is None


def test_flags_in_the_command_are_not_read() -> None:
    loaded = _study(f"{GEMMA}:bf16", command="vllm serve --tensor-parallel-size 4", flags={})
    assert why_too_large(loaded, _on(RTX), None) is None
    assert why_no_weights(loaded) is None


def test_other_models_are_vllms_to_judge(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    body = shape_named("gemma-4-31b").target("bf16")
    (tmp_path / "m" / "config.json").write_text(json.dumps(body))
    (tmp_path / "m" / "model.safetensors").write_bytes(b"x")
    loaded = _study(str(tmp_path / "m"), None)
    assert why_too_large(loaded, _on(RTX), None) is None
    assert why_no_weights(_study(str(tmp_path / "m"), None, flags={})) is None
    assert why_no_weights(_study("org/m", None, flags={})) is None
    (tmp_path / "m" / "model.safetensors").unlink()
    assert why_too_large(loaded, _on(RTX), None) is not None


def test_a_model_without_weights_needs_random_ones() -> None:
    line = why_no_weights(_study(flags={}))
    assert line is not None
    assert line.startswith(f"server.model: {GEMMA}:w4a16 has no files of weights: ")
    line = why_no_weights(_study("org/m", flags={}))
    assert line is not None
    assert line.startswith(f"server.speculative.model: {GEMMA}:draft has no files of weights: ")
    assert why_no_weights(_study(flags={}, draft_weights="dummy")) is None
    line = why_no_weights(_study(flags={}, draft_weights="real"))
    assert line is not None
    assert line.startswith(f"server.speculative.model: {GEMMA}:draft has no files of weights: ")
    assert "add `rehearsal: {weights: dummy}`, which fills it" in line
    assert why_no_weights(_study()) is None
    assert why_no_weights(_study("org/m")) is None


def test_the_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    """vLLM would serve a shape with it, and fail at an id that it has not, or give no text."""
    path = tmp_path / "tokenizer.json"
    flags = {"load-format": "dummy", "tokenizer": str(tmp_path)}
    for vocabulary, ok in ((262_144, True), (32_000, False), (300_000, False)):
        path.write_text(json.dumps({"model": {"vocab": {"a": 0, "b": vocabulary - 1}}}))
        why = why_no_weights(_study(flags=flags))
        assert (why is None) is ok
        assert ok or why == (
            f"server.flags.tokenizer: {path} is of another model: it has ids up to "
            f"{vocabulary - 1}, and this one has 262144 tokens; name that of {GEMMA}:w4a16"
        )
    assert why_no_weights(_study(flags={**flags, "tokenizer": "org/model"})) is None


@pytest.fixture(scope="module")
def pieces() -> bytes:
    """A tokenizer of SentencePiece, as a file."""
    library = pytest.importorskip("sentencepiece")
    file = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world", "the quick brown fox"] * 9),
        model_writer=file,
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return file.getvalue()


def test_a_tokenizer_of_sentencepiece_is_checked(tmp_path: Path, pieces: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(pieces)
    count = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_proto=pieces)
    loaded = _study(flags={"load-format": "dummy", "tokenizer": str(tmp_path)})
    assert why_no_weights(loaded) == (
        f"server.flags.tokenizer: {path} is of another model: it has ids up to "
        f"{count.get_piece_size() - 1}, and this one has 262144 tokens; name that of {GEMMA}:w4a16"
    )
    for name, most, words in (
        ("added_tokens.json", 262_143, None),
        ("tokenizer_config.json", 262_144, "has ids up to 262144, and"),
    ):
        added = (
            {"<x>": most} if name == "added_tokens.json" else {"added_tokens_decoder": {most: 0}}
        )
        (tmp_path / name).write_text(json.dumps(added))
        why = why_no_weights(loaded)
        assert (why is None) if words is None else (words in str(why))
    assert unchecked_tokenizer(loaded) is None
    (tmp_path / "added_tokens.json").write_text("[")
    assert f"{path} cannot be read as a tokenizer" in str(why_no_weights(loaded))


def test_a_tokenizer_that_cannot_be_checked_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_text("aGVsbG8= 1\n")  # that of Llama 3
    loaded = _study(flags={"load-format": "dummy", "tokenizer": str(tmp_path)})
    told = f"server.flags.tokenizer: {path} was not compared with the model's vocabulary: "
    for library, words in (
        (FakeSentencePiece, "SentencePiece does not read it"),
        (None, "`pip install sentencepiece` reads it"),
    ):
        monkeypatch.setitem(sys.modules, "sentencepiece", library)
        assert why_no_weights(loaded) is None
        assert unchecked_tokenizer(loaded) == told + words
    path.unlink()
    assert unchecked_tokenizer(loaded) is None


class FakeSentencePiece:
    """The library, as it answers where the file is no model of it."""

    @staticmethod
    def SentencePieceProcessor(model_file: str) -> None:
        raise RuntimeError(f"INTERNAL: could not parse ModelProto from {model_file}")


def test_a_run_ends_before_anything_is_launched(tmp_path: Path) -> None:
    file = write_study(tmp_path, server__model="shape:qwen3-8b")
    for command in ("run", "explain"):
        done = autotune(command, str(file), cwd=tmp_path)
        assert done.returncode == 2
        assert "server.model: shape:qwen3-8b has no files of weights" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "autotune.db").exists()
