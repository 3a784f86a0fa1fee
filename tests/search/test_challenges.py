"""Where a belief is challenged: in the gaps between the launches, and beside the best points."""

from __future__ import annotations

from autotune.search.challenges import beside, compared, unseen
from autotune.study.space import ARM, MNBT, ChoiceParam, IntParam, N, Point, Pow2Param, Space

SPACE = Space(
    {N: IntParam(type="int", low=0, high=15), MNBT: Pow2Param(type="pow2", low=512, high=4096)}
)
POINTS = list(SPACE.points() or ())


def of(*ns: int) -> list[Point]:
    return [{N: n, MNBT: 2048} for n in ns]


def gap_ns(space: Space, seen: list[Point]) -> set[int]:
    left = [q for q in space.points() or () if q not in seen]
    return {int(q[N]) for q, x in zip(left, unseen(space, left, seen), strict=True) if x}


def test_the_largest_gap_is_filled_first_until_every_n_is_next_to_a_launch() -> None:
    seen = of(0, 15, 3)
    filled = []
    while found := gap_ns(SPACE, seen):
        filled.append(min(found))
        seen += of(filled[-1])
    assert filled[0] == 9  # in the middle between 3 and 15
    assert len(filled) <= 4
    launched = {int(q[N]) for q in seen}
    assert all({n - 1, n, n + 1} & launched for n in range(16))


def test_all_budgets_of_a_gap_are_asked_and_a_batch_spreads() -> None:
    left = [q for q in POINTS if q not in of(0, 15, 3)]
    found = [q for q, x in zip(left, unseen(SPACE, left, of(0, 15, 3)), strict=True) if x]
    assert {q[MNBT] for q in found} == {512, 1024, 2048, 4096}
    assert gap_ns(SPACE, of(0, 15, 3, 9)) == {6, 12}  # the one at 9 runs


def test_a_long_axis_is_covered_by_a_tenth_of_it() -> None:
    space = Space({N: IntParam(type="int", low=0, high=60)})
    every: list[Point] = [{N: n} for n in range(0, 61, 12)]
    assert not gap_ns(space, every)
    assert gap_ns(space, [{N: n} for n in range(0, 61, 20)])


def test_each_arm_has_gaps_of_its_own_and_no_speculation_belongs_to_all() -> None:
    space = Space(
        {
            ARM: ChoiceParam(type="choice", choices=("a", "b")),
            N: IntParam(type="int", low=0, high=9),
        }
    )
    seen: list[Point] = [{ARM: "a", N: n} for n in range(0, 10, 2)]
    left = [q for q in space.points() or () if q not in seen and q[N]]
    found = [q for q, x in zip(left, unseen(space, left, seen), strict=True) if x]
    assert found == [{ARM: "b", N: 9}]


def test_without_a_number_there_is_no_gap() -> None:
    space = Space({"kv_cache_dtype": ChoiceParam(type="choice", choices=("auto", "fp8"))})
    points = list(space.points() or ())
    assert not unseen(space, points, points[:1]).any()


def test_beside_the_best_point_is_one_change_of_one_parameter() -> None:
    best: Point = {N: 7, MNBT: 1024}
    left = [q for q in POINTS if q != best]
    found = [q for q, x in zip(left, beside(SPACE, left, [best]), strict=True) if x]
    assert {N: 6, MNBT: 1024} in found
    assert {N: 8, MNBT: 1024} in found
    assert {N: 7, MNBT: 512} in found
    assert {N: 7, MNBT: 2048} in found
    assert {N: 7, MNBT: 4096} in found  # an end
    assert all((q[N] == 7) != (q[MNBT] == 1024) for q in found)
    assert {int(q[N]) for q in found} == {6, 7, 8}


def test_a_gap_is_compared_with_the_best_point_where_nothing_but_n_differs() -> None:
    left = [q for q in POINTS if q not in of(0, 15, 3)]
    found = [q for q, x in zip(left, compared(SPACE, left, of(3)), strict=True) if x]
    assert {q[MNBT] for q in found} == {2048}
    assert len(found) == 13


def test_another_choice_is_beside() -> None:
    space = Space(
        {
            N: IntParam(type="int", low=0, high=3),
            "kv_cache_dtype": ChoiceParam(type="choice", choices=("auto", "fp8", "int8")),
        }
    )
    best: Point = {N: 2, "kv_cache_dtype": "auto"}
    left = [q for q in space.points() or () if q != best]
    found = [q for q, x in zip(left, beside(space, left, [best]), strict=True) if x]
    assert {(q[N], q["kv_cache_dtype"]) for q in found} == {
        (1, "auto"),
        (3, "auto"),
        (2, "fp8"),
        (2, "int8"),
    }
