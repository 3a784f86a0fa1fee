"""Find the decode batches that vLLM replays as a full CUDA graph, and those that it does not.

=============  ===============================================================
n              draft tokens per step; 0 without speculation
b              requests of a step
b·(n + 1)      tokens that a step verifies: a *uniform* batch, equal for all requests
FULL           one CUDA graph of the whole step
piecewise      CUDA graphs between the attention layers, whose kernels are launched one by one
=============  ===============================================================

vLLM captures FULL graphs for some sizes. The other sizes run piecewise graphs, or none. Where a
step takes a millisecond, the difference can be seen.

Confirmed in the source of 0.24.0 to 0.33.0:

- The list of sizes (``config/vllm.py:VllmConfig._set_cudagraph_sizes``): 1, 2, 4, then
  multiples of 8 up to 256 and of 16 above, up to min(2·max_num_seqs·(n + 1), 512, MNBT), and MNBT
  where it is not above that. From 0.28 on it goes up to 1024 on Blackwell data-center GPUs. 0.29
  adds multiples of n + 1, for 1, 2, 4, 8, 16, … requests and max_num_seqs, and 0.31 adds
  max_num_seqs at n = 0.
- FULL graphs have a multiple of n + 1 tokens. Model runner V1 rounds the whole list up to
  multiples, and so does V2 in 0.24 (``config/compilation.py:adjust_cudagraph_sizes_for_spec_
  decode``): FULL and piecewise graphs share their sizes, and any batch up to the largest finds a
  FULL one. From 0.25 on V2 rounds for FULL graphs only, and keeps the list as it is for the
  piecewise ones (``v1/worker/gpu/cudagraph_utils.py:CudaGraphManager._init_candidates``).
- **Holes**: V2 of 0.25 to 0.28 looks for a graph under the next captured size only, FULL and
  piecewise in one row. With n = 4 four requests verify 20 tokens, a FULL graph; three verify 15,
  the next size is the piecewise 16, and the FULL graph of 20 is never considered. Where n + 1
  divides 8, n = 1, 3, 7, every size is both and nothing is missed. From 0.29 on there is a row for
  each kind (0.29.0: 310).
- **The end**: the list ends at 512 tokens, so that at n = 7 more than 64 requests have no graph.
- Sizes that are given (``--cudagraph-capture-sizes``, the same flag in all versions) replace the
  list, but for those above MNBT.
- For 0.26, V2 and max_num_seqs 32 the number of FULL graphs here is what an H200 captured:
  n = 1: 10, 2: 14, 3: 17, 4: 21, 5: 25, 6: 29, 7: 32.
- vLLM's own ``_set_cudagraph_sizes``, ``adjust_cudagraph_sizes_for_spec_decode`` and
  ``_init_candidates`` of each of the ten versions were run on 700 settings, n = 0 to 15, with and
  without Blackwell: both lists and what each batch replays are the same as here.
- The DFlash draft's own graphs are FULL ones only, in a row of their own: no bumps from there.

Not confirmed, and not explained by the above: an H200 with 0.26 and max_num_seqs 32 had n = 4, 5, 6
20 to 30 % below n = 3 and 7, at concurrency 8 and 32. There are holes at n = 4 (3, 6, 9, …
requests) and n = 5 (5, 9, 13, …), but at n = 6 none up to 8 requests, and at n = 2 (4, 5, 9, …),
where no bump was reported; and full batches of 8 and 32 have FULL graphs at all of them. So holes
can be a part of the bumps, and not all. Whether aligned sizes help must be measured.

Not covered: sequence parallelism, LoRA, ``performance_mode``, schedules of n, adaptive verification
(whose FULL graphs take any mix of lengths), and which runner a model gets, which depends on its
architecture: V2 is assumed. An older version is taken for 0.24, a newer one for 0.33.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean
from typing import Literal

from packaging.version import Version

from autotune.engine.gpus import Gpu, data_center_blackwell
from autotune.engine.rule import minor_of

Runner = Literal["v1", "v2"]

# End of the list, in tokens (VllmConfig._set_cudagraph_sizes), and on data-center Blackwell.
_MOST_TOKENS, MOST_TOKENS_WIDE = 512, 1024
# First versions in which: V2 keeps the list for piecewise graphs; the list is a wide one on
# Blackwell; it has multiples of n + 1, and a row for each kind; it has max_num_seqs at n = 0.
# A release candidate is taken for its release.
_OWN_LIST, WIDE_SINCE = Version("0.25.dev0"), (0, 28)
_BY_REQUESTS, _LAST_REQUEST = Version("0.29.dev0"), Version("0.31.dev0")
# Up to this many requests, every batch size has an aligned graph.
_EVERY_BATCH = 32


class Mode(StrEnum):
    """Kind of graph that a step runs."""

    FULL = "full"
    PIECEWISE = "piecewise"
    NONE = "none"


@dataclass(frozen=True)
class Graphs:
    """The CUDA graphs of one server.

    Attributes:
        n: Draft tokens per step.
        full: Sizes in tokens of the FULL graphs of uniform batches, ascending.
        piecewise: Sizes in tokens of the piecewise graphs, ascending.
        one_row: Whether only the next size of either kind is considered (V2 of 0.25 to 0.28).
    """

    n: int
    full: tuple[int, ...]
    piecewise: tuple[int, ...]
    one_row: bool

    def replay(self, requests: int) -> tuple[Mode, int]:
        """Return the kind of graph of a step, and its size in tokens.

        The size may be larger than the batch, which is then padded.

        Args:
            requests: Requests that the step decodes.
        """
        tokens = requests * (self.n + 1)
        full = next((s for s in self.full if s >= tokens), None)
        piecewise = next((s for s in self.piecewise if s >= tokens), None)
        if full is not None and (piecewise is None or full <= piecewise or not self.one_row):
            return Mode.FULL, full
        if piecewise is not None:
            return Mode.PIECEWISE, piecewise
        return Mode.NONE, tokens


@dataclass(frozen=True)
class Coverage:
    """Fit of the graphs to the batches of a load.

    Attributes:
        full: Share of the batch sizes that replay a FULL graph, 0 to 1.
        exact: Share of the batch sizes that replay a FULL graph without padding, 0 to 1.
        padding: Mean share of padding among the tokens of a replayed graph, FULL or piecewise.
        missed: Batch sizes without a FULL graph.
    """

    full: float
    exact: float
    padding: float
    missed: tuple[int, ...]


def graphs(
    n: int,
    max_num_seqs: int,
    mnbt: int,
    version: str,
    given: Sequence[int] | None = None,
    *,
    runner: Runner = "v2",
    most: int = _MOST_TOKENS,
) -> Graphs:
    """Return the graphs that a server captures with the default ``cudagraph_mode``.

    Args:
        n: Draft tokens per step; 0 without speculation.
        max_num_seqs: Most requests of a step.
        mnbt: ``max_num_batched_tokens``.
        version: Version of vLLM, such as ``0.26.0``.
        given: Value of ``--cudagraph-capture-sizes``, if given.
        runner: Model runner of vLLM.
        most: End of the list in tokens; see :func:`most_tokens`.
    """
    v = Version(version)
    query = n + 1
    if given is not None:
        listed = sorted({s for s in given if s <= mnbt})
    else:
        listed = _default_list(query, max_num_seqs, mnbt, most, v)
    if not listed:
        return Graphs(n, (), (), one_row=False)
    largest = listed[-1]
    rounded = sorted({_round_up(s, query) for s in listed if _round_up(s, query) <= largest})
    full = tuple(s for s in rounded if s <= max_num_seqs * query)
    if runner == "v1" or v < _OWN_LIST:
        both = rounded or ([query] if query <= largest else [])
        if n == 0:
            both = listed
        full = tuple(s for s in both if s <= max_num_seqs * query)
        return Graphs(n, full, tuple(both), one_row=False)
    return Graphs(n, full, tuple(listed), one_row=v < _BY_REQUESTS)


def capture_sizes(
    n: int, max_num_seqs: int, mnbt: int, version: str, given: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Return the sizes of the FULL graphs of uniform decode batches, in tokens, ascending.

    They are multiples of n + 1. The arguments are those of :func:`graphs`.

    >>> capture_sizes(4, 4, 2048, "0.26.0")
    (5, 10, 20)
    """
    return graphs(n, max_num_seqs, mnbt, version, given).full


def coverage(found: Graphs, concurrency: int) -> Coverage:
    """Return how well graphs fit batches of 1 to ``concurrency`` requests, each size counted once.

    Args:
        found: Graphs of :func:`graphs`.
        concurrency: Largest concurrency, at least 1.
    """
    batches = range(1, concurrency + 1)
    runs = [found.replay(b) for b in batches]
    tokens = [b * (found.n + 1) for b in batches]
    full = [mode is Mode.FULL for mode, _ in runs]
    exact = [f and size == t for f, (_, size), t in zip(full, runs, tokens, strict=True)]
    return Coverage(
        full=fmean(full),
        exact=fmean(exact),
        padding=fmean((size - t) / size for (_, size), t in zip(runs, tokens, strict=True)),
        missed=tuple(b for b, f in zip(batches, full, strict=True) if not f),
    )


def aligned_sizes(
    n: int, max_num_seqs: int, mnbt: int | None = None, *, most: int = _MOST_TOKENS
) -> tuple[int, ...]:
    """Return capture sizes that are all multiples of n + 1: every decode batch finds a FULL graph.

    There is a size for each batch size up to 32, then for every 8th, above 256 for every 16th, and
    for max_num_seqs. The default list continues above that for prompts, which run piecewise, up to
    2·max_num_seqs·(n + 1) or 512 tokens. These sizes do so too, in the same steps.

    Args:
        n: Draft tokens per step; 0 without speculation.
        max_num_seqs: Most requests of a step.
        mnbt: ``max_num_batched_tokens``; larger sizes are left out.
        most: End of the default list in tokens; aligned sizes continue to max_num_seqs.

    >>> aligned_sizes(4, 4)
    (5, 10, 15, 20, 25, 35, 40)
    """
    query = n + 1
    requests = [
        *range(1, min(_EVERY_BATCH, max_num_seqs) + 1),
        *range(_EVERY_BATCH + 8, min(256, max_num_seqs + 1), 8),
        *range(256, max_num_seqs + 1, 16),
        max_num_seqs,
    ]
    decode = {b * query for b in requests}
    end = min(2 * max_num_seqs * query, most)
    prompts = {_round_up(s, query) for s in _strides(end)}
    prompts.add(end // query * query)
    sizes = decode | {s for s in prompts if max_num_seqs * query < s <= end}
    return tuple(sorted(s for s in sizes if mnbt is None or s <= mnbt))


def most_tokens(version: str | None, gpus: Sequence[Gpu]) -> int:
    """Return the end of the default list of sizes, in tokens.

    Args:
        version: Version of vLLM, such as ``0.28.0``; None, or no version: unknown.
        gpus: GPUs that vLLM sees.
    """
    wide = (minor_of(version) or (0, 0)) >= WIDE_SINCE and data_center_blackwell(gpus)
    return MOST_TOKENS_WIDE if wide else _MOST_TOKENS


def _default_list(
    query: int, max_num_seqs: int, mnbt: int, most: int, version: Version
) -> list[int]:
    """Return the list of ``VllmConfig._set_cudagraph_sizes``, in tokens, ascending."""
    wanted = min(2 * max_num_seqs * query, most)
    largest = min(wanted, mnbt)
    sizes = set(_strides(largest))
    if mnbt <= largest:
        sizes.add(mnbt)
    if query > 1 and version >= _BY_REQUESTS:
        requests = min(max_num_seqs, most)
        counts = {*_strides(requests), requests}
        sizes |= {c * query for c in counts if c * query <= largest}
    elif query == 1 and version >= _LAST_REQUEST and max_num_seqs <= largest:
        sizes.add(max_num_seqs)
    return sorted(sizes)


def _strides(largest: int) -> list[int]:
    """Return 1, 2, 4, then multiples of 8 below 256, then multiples of 16."""
    return [
        *(s for s in (1, 2, 4) if s <= largest),
        *range(8, min(largest + 1, 256), 8),
        *range(256, largest + 1, 16),
    ]


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
