"""The rules against the answers that each vLLM's own configuration code gave.

`python -m benchmarks.vllm_rules` makes the tables; `python -m benchmarks.vllm_rules_compare` shows
what disagrees, with examples.
"""

from __future__ import annotations

from collections import Counter

import pytest

from autotune.engine.active_requests import active_limit
from autotune.engine.cuda_graphs import Mode, graphs
from benchmarks.vllm_rules import DATA, asks, packed, read, unpacked
from benchmarks.vllm_rules_base import MNBT, SEQS, N
from benchmarks.vllm_rules_cases import groups, settings_of
from benchmarks.vllm_rules_compare import counts, disagreements, known_of, lines_of

VERSIONS = sorted(p.stem for p in DATA.glob("*.json"))


@pytest.mark.parametrize("version", VERSIONS)
def test_rules_refuse_what_vllm_refuses_and_nothing_else(version: str) -> None:
    table = read(version)
    wrong = list(disagreements(table))
    first = "\n".join(str(w) for w in wrong[:5])
    assert not wrong, "\n".join([*lines_of(version, counts(table)), first])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_table_answers_the_settings_of_this_program(version: str) -> None:
    table = read(version)
    wanted = [asks(g) for g in groups()]
    had = [asks(g) for g in table["groups"]]
    assert had == [w for w in wanted if w in had]  # the settings are those of this program
    found: Counter[int] = Counter()
    for group in table["groups"]:
        answers = unpacked(group["answers"])
        assert len(answers) == len(list(settings_of(group)))
        found.update(answers)
    assert set(found) == set(range(len(table["messages"]) + 1))  # each message is used


@pytest.mark.parametrize("version", VERSIONS)
def test_as_many_requests_run_at_once_as_vllm_says(version: str) -> None:
    """Where vLLM lowers max_num_active_seqs, the rules know the number exactly."""
    seen = 0
    for group in read(version)["groups"]:
        if "active" not in group:
            continue
        answers = zip(unpacked(group["answers"]), unpacked(group["active"]), strict=True)
        for settings, (code, active) in zip(settings_of(group), answers, strict=True):
            if code or SEQS not in settings:
                continue  # refused, or with vLLM's own max_num_seqs
            asked = {k: v for k, v in settings.items() if k != "model"}
            ours = active_limit(asked, version, known_of(group, settings))
            seqs = settings[SEQS]
            assert min(ours or seqs, seqs) == min(active or seqs, seqs), settings
            seen += active is not None and active < seqs
    lowers = version == "0.33.0"
    assert (seen > 100) == lowers


@pytest.mark.parametrize("version", VERSIONS)
def test_graphs_are_those_of_vllm(version: str) -> None:
    """The FULL graphs of runner V2, and what each batch of up to 32 requests replays."""
    asked = [g for g in read(version)["groups"] if "replays" in g]
    if not asked:
        pytest.skip("the table has no CUDA graphs yet")
    signs = {Mode.FULL: 1, Mode.PIECEWISE: -1, Mode.NONE: 0}
    seen = 0
    for group in asked:
        columns = [unpacked(group[x]) for x in ("answers", "full", "replays", "runner")]
        for settings, row in zip(settings_of(group), zip(*columns, strict=True), strict=True):
            code, full, replays, runner = row
            if code or runner != "v2":
                continue
            n, given = settings.get(N, 0), settings.get("cudagraph_capture_sizes")
            found = graphs(n, settings[SEQS], settings[MNBT], version, given)
            assert list(found.full) == full, settings
            runs = [found.replay(b) for b in range(1, len(replays) + 1)]
            assert [signs[mode] * size for mode, size in runs] == replays, settings
            seen += 1
    assert seen > 50


def test_answers_are_kept_run_by_run() -> None:
    values = [0, 0, 0, 3, None, None, [1, 2], [], "v2", "v2"]
    text = packed(values)
    assert text == "0*3 3 -*2 1,2, , v2*2"
    assert unpacked(text) == values


def test_tables_are_small() -> None:
    assert sum(p.stat().st_size for p in DATA.glob("*.json")) < 1.5 * 2**20
