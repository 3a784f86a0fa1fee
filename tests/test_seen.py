"""The script that shows what a user sees differently since a commit."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests import seen


def test_only_what_must_differ_is_replaced() -> None:
    now = datetime.now(UTC)
    text = (
        f"FOLDER is /tmp/x/view, autotune 1.2.3, {now:%Y-%m-%d %H:%M} UTC; measured 2025-01-02 "
        f"03:04 with vLLM 0.26.0 on {now:%Y-%m-%d}; {'A' * 5000}"
    )
    assert seen.normalized(text, {Path("/tmp/x/view"): "FOLDER"}) == (  # noqa: S108
        "FOLDER is FOLDER, autotune VERSION, TODAY UTC; measured 2025-01-02 03:04 with vLLM 0.26.0 "
        f"on TODAY; BASE64 {seen._digest('A' * 5000)}"
    )


def test_a_figure_has_a_random_name_and_plotly_inside() -> None:
    page = '<script>{}</script><div id="{}" class="plotly">'.format
    first = page(seen._plotly(), "bf4b0682-dddf-45b3-9c2c-a232a01daa27")
    second = page(seen._plotly(), "27030e33-bd21-4b8d-9f41-83ff172f4024")
    assert seen.normalized(first, {}) == seen.normalized(second, {})
    assert len(seen.normalized(first, {})) < 100


def test_differences_name_the_view_and_show_the_place_in_a_long_line() -> None:
    page = ",".join(f'"{i}": {i}' for i in range(1000))
    before = {"a.txt": "one\n", "b.txt": "two\n", "json.txt": page}
    after = {"a.txt": "one\n", "c.txt": "three\n", "json.txt": page.replace('"7": 7', '"7": 8')}
    lines = seen.differences(before, after)
    assert [line for line in lines if line[0] in "+-" and line[1] not in "+-"] == [
        "-two",
        "+three",
        '-"7": 7,',
        '+"7": 8,',
    ]
    assert [line.split()[1] for line in lines if line.startswith("---")] == [
        "b.txt",
        "c.txt",
        "json.txt",
    ]
    assert seen.differences(before, before) == []


def test_the_last_digits_of_a_number_are_no_difference() -> None:
    before = {"a.txt": '{"ms": 409.87654321098765, "n": 7, "version": "0.26.0"}'}
    assert seen.differences(before, {"a.txt": before["a.txt"].replace("8765,", "8791,")}) == []
    assert seen.differences(before, {"a.txt": before["a.txt"].replace("409.8", "409.9")}) != []
    assert seen.differences(before, {"a.txt": before["a.txt"].replace("0.26.0", "0.26.1")}) != []


def test_views_are_stored_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = ["--jobs", "1", "--only", "demo-cpu/autotune: status*--trial*"]
    assert seen.main(["--store", str(tmp_path), *only]) == 0
    stored = {path.name: path.read_text() for path in tmp_path.iterdir()}
    refused = stored["demo-cpu_autotune_status_--trial_999.txt"]
    assert refused.startswith("$ autotune status --trial 999\n=== exit code\n2\n=== stdout\n")
    assert "=== tables changed in autotune.db\n" in refused
    changed = tmp_path / "demo-cpu_autotune_status_--trial_0.txt"
    assert "=== exit code\n0\n" in stored[changed.name]
    changed.write_text(stored[changed.name].replace("=== exit code\n0\n", "=== exit code\n1\n"))
    capsys.readouterr()
    assert seen.main(["--against", str(tmp_path), *only]) == seen.DIFFERENT
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line[0] in "+-"][2:] == ["-1", "+0"]
