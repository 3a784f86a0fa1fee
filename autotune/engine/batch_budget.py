"""Whether a load can ever fill max_num_batched_tokens; if not, larger budgets are one server.

=========  ========================================================================================
symbol     meaning
=========  ========================================================================================
n          draft tokens per step; 0 without speculation
MNBT       ``max_num_batched_tokens``
L          ``max_model_len``
C          requests of a step, at most: the smallest of the load's concurrency, ``max_num_seqs`` and
           ``max_num_active_seqs``
R          tokens of the longest prompt; L where that is unknown
slots      tokens of a step that vLLM keeps free for the drafts of one request
=========  ========================================================================================

A step takes the rest of a prompt, or one token and n drafts, of each request: at most
S = C·max(R, n + 1) tokens. MNBT never binds

- in 0.24 to 0.27 from S + slots·max_num_seqs on: MNBT less all slots is what the scheduler has
  (``config/vllm.py: VllmConfig._set_max_num_scheduled_tokens``);
- from 0.28 on from S + C·slots on: each scheduled request takes its tokens and its slots
  (``v1/core/sched/scheduler.py``, 0.28.0: 701, 0.32.0: 857, 0.33.0: 1003);
- in 0.33, for DFlash and DSpark, from C·lookahead on, too (`autotune.engine.active_requests`);
  their slots are 0 there (``config/speculative.py: max_num_new_slots_for_drafting``, 0.33.0: 2058).

Prefix hits only lower S, and a smaller MNBT is what splits prompts. The CUDA graphs end at
min(2·max_num_seqs·(n + 1), 512 or 1024, MNBT), and MNBT itself is captured where it is not above
that (`autotune.engine.cuda_graphs`), so a budget below that end is another server.

What is left are conditions that cannot be proven before a launch. Where one is open, budgets are
only *likely* the same: whether memory for the KV cache is short enough to preempt requests, which
then read their answers again; images, whose encoder has MNBT for its budget; the defaults of vLLM
that MNBT caps; and sources that nobody read. A single request is never preempted, because vLLM
refuses to start if the KV cache does not hold L tokens. A Mamba cache that is aligned cuts prompts
by MNBT only where a prompt does not fit (``_mamba_block_aligned_split``), but is left open.

The module is pure: settings in, numbers and words out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from autotune.engine.active_requests import ACTIVE
from autotune.engine.compilation import compilation, cudagraph_mode
from autotune.engine.cuda_graphs import MOST_TOKENS_WIDE, WIDE_SINCE, aligned_sizes, most_tokens
from autotune.engine.gpus import default_seqs
from autotune.engine.rule import NOTHING, SEQS, Known, Launch, minor_text
from autotune.engine.rules import stand_ins
from autotune.study.space import ALIGNED, MNBT, as_int

_LENGTH = "max_model_len"
# First versions in which: slots are taken by the scheduled requests; max_num_active_seqs is a flag;
# DFlash and DSpark draft in a pass of their own.
_BY_REQUEST, _ACTIVE, _OWN_PASS = (0, 28), (0, 31), (0, 33)
# Most sequences that vLLM's default of max_num_seqs may be on a GPU (engine/arg_utils.py:
# get_batch_defaults), twice that with --performance-mode throughput.
_MOST_SEQS = 1024


class Verdict(StrEnum):
    """Whether a larger MNBT is another server."""

    SAME = "the same"
    LIKELY = "likely the same"
    BINDS = "may bind"


@dataclass(frozen=True)
class Load:
    """What a load asks of a step; None: unknown.

    Attributes:
        concurrency: Most requests at once; None: as many as the server takes.
        prompt: Tokens of the longest prompt, as the server counts them.
        output: Tokens of the longest answer.
        images: Whether prompts have images.
    """

    concurrency: int | None = None
    prompt: int | None = None
    output: int | None = None
    images: bool | None = None


@dataclass(frozen=True)
class Budget:
    """What is known of a launch's MNBT.

    Attributes:
        verdict: Whether a larger MNBT is another server.
        least: Smallest MNBT that never binds; None: unknown.
        why: Reason in words: what never fills it, or what may.
        conditions: What the verdict depends on and cannot be proven, each in words.
    """

    verdict: Verdict
    least: int | None
    why: str
    conditions: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Step:
    """Largest step of a load; numbers as in the module's table."""

    requests: int
    tokens: int  # max(R, n + 1)
    slots: int  # of all requests together
    lookahead: int  # of all requests together; 0: none

    @property
    def least(self) -> int:
        return max(self.requests * self.tokens + self.slots, self.lookahead)


def batch_budget(
    settings: Mapping[str, object],
    vllm_version: str | None,
    load: Load,
    known: Known = NOTHING,
) -> Budget:
    """Return whether a load can fill the MNBT of a launch.

    Args:
        settings: Settings as for :func:`autotune.engine.rules.why_infeasible`.
        vllm_version: Version such as ``0.33.0``. Of a version that nobody read, MNBT must be large
            enough for all that speak for it, and the verdict is never certain.
        load: What the study sends.
        known: Facts about machine and target.
    """
    launches = [
        Launch(settings, known, f"vLLM {vllm_version}", minor) for minor in stand_ins(vllm_version)
    ]
    length = launches[0].number(_LENGTH)
    if _LENGTH not in settings:
        length = known.model_max_len
    elif length is not None and length < 1:  # -1 and 0: vLLM chooses
        length = None
    longest = min((x for x in (load.prompt, length) if x is not None), default=None)
    if longest is None:
        return Budget(Verdict.BINDS, None, "how long prompts may be is unknown: set max-model-len")
    steps = [_step(x, load, longest) for x in launches]
    found = [x for x in steps if x is not None]
    if len(found) < len(steps):
        return Budget(
            Verdict.BINDS,
            None,
            "how many requests a step may have is unknown: set max-num-seqs or max_concurrency",
        )
    step = max(found, key=lambda x: x.least)
    end = max(_graph_end(x) for x in launches)
    least, mnbt = max(step.least, end), launches[0].number(MNBT)
    if mnbt is None or mnbt < least:
        full = step.least if mnbt is None or mnbt < step.least else end
        words = f"{_words(step, longest, load)} may fill it"
        if full == end and mnbt is not None and mnbt >= step.least:
            words = f"CUDA graphs are captured for up to {end} tokens, or MNBT where that is less"
        return Budget(Verdict.BINDS, least, words)
    conditions = tuple(
        dict.fromkeys(text for x in launches for text in _open(x, load, length, mnbt))
    )
    if len(launches) > 1:
        read = [minor_text(x.minor) for x in launches if x.minor is not None]
        span = f"{read[0]} {'and' if len(read) == 2 else 'to'} {read[-1]}"
        of = "of unknown version" if vllm_version is None else vllm_version
        conditions = (f"that vLLM {of} schedules as {span} do", *conditions)
    verdict = Verdict.LIKELY if conditions else Verdict.SAME
    fills = "never fill" if step.requests > 1 else "never fills"
    return Budget(verdict, least, f"{_words(step, longest, load)} {fills} it", conditions)


def _words(step: _Step, longest: int, load: Load) -> str:
    """Return the largest step in words: ``one request of 256 tokens``."""
    upto = "" if load.prompt is not None and longest == load.prompt else "up to "
    of = f"{upto}{step.tokens} tokens"
    words = f"one request of {of}" if step.requests == 1 else f"{step.requests} requests of {of}"
    return f"{words} and {step.slots} for drafts" if step.slots else words


def _step(launch: Launch, load: Load, longest: int) -> _Step | None:
    """Return the largest step of a load; None: the number of requests is unknown."""
    seqs = _most_seqs(launch)
    active = launch.number(ACTIVE) if launch.since(_ACTIVE) else None
    bounds = [x for x in (load.concurrency, seqs, active) if x is not None and x > 0]
    slots = _slots(launch)
    if not bounds or (slots and seqs is None and not launch.since(_BY_REQUEST)):
        return None
    requests = min(bounds)
    taken = requests if launch.since(_BY_REQUEST) else (seqs or 0)
    lookahead = 0
    if launch.n > 0 and launch.since(_OWN_PASS) and launch.method in {"dflash", "dspark"}:
        anchor = launch.method == "dspark" and launch.draft.from_anchor is True
        lookahead = launch.n if anchor else launch.n + 1
    return _Step(requests, max(longest, launch.n + 1), slots * taken, requests * lookahead)


def _slots(launch: Launch) -> int:
    """Return the slots of one request, at most.

    ``config/speculative.py: SpeculativeConfig.max_num_new_slots_for_drafting``.
    """
    n, draft_model = launch.n, launch.method == "draft_model"
    if n < 1:
        return 0
    if launch.method is None:  # vLLM chooses
        return n
    if not launch.since(_BY_REQUEST):
        return (n - 1 if launch.parallel else 0) + draft_model
    if launch.method in {"dflash", "dspark"} and launch.since(_OWN_PASS):
        return 0
    if launch.method == "dflash" or (draft_model and launch.parallel):
        return n
    return n - 1 if launch.parallel else int(draft_model)


def _most_seqs(launch: Launch) -> int | None:
    """Return an upper bound of max_num_seqs, which is exact where it is given; None: unknown."""
    if SEQS in launch.settings:
        return launch.number(SEQS)
    exact = default_seqs(launch.known.gpus, launch.minor)
    if launch.known.platform == "cpu" or exact is not None:
        return launch.seqs()[0]
    fast = launch.settings.get("performance_mode") == "throughput"
    return _MOST_SEQS * (2 if fast else 1)


def _graph_end(launch: Launch) -> int:
    """Return the MNBT from which on CUDA graphs do not depend on it, where it is certain."""
    s, n, seqs = launch.settings, launch.n, launch.number(SEQS)
    if _without_graphs(launch):
        return 0
    if s.get(ALIGNED) is True:
        return max(aligned_sizes(n, seqs), default=0) if seqs is not None and seqs > 0 else 0
    given = [x for key in _GRAPHS for x in _numbers(compilation(s, key))]
    if given:
        return _next(max(given))
    return _next(min(2 * seqs * (n + 1), _list_ends(launch)[0])) if seqs is not None else 0


def _list_ends(launch: Launch) -> tuple[int, int]:
    """Return the least and the most at which the default list of graphs ends, in tokens."""
    version = None if launch.minor is None else minor_text(launch.minor)
    least = most_tokens(version, launch.known.gpus)
    unknown = launch.since(WIDE_SINCE) and not launch.known.gpus
    return least, MOST_TOKENS_WIDE if unknown else least


def _next(end: int) -> int:
    """Return the smallest MNBT that adds no size of its own to a list of graphs up to ``end``."""
    stride = 8 if end < 256 else 16
    return end if end % stride == 0 else end + 1


_GRAPHS = ("cudagraph_capture_sizes", "max_cudagraph_capture_size")


def _numbers(values: list[object]) -> list[int]:
    """Return the whole numbers among values and lists of values."""
    flat = [x for v in values for x in (v if isinstance(v, list) else [v])]
    return [x for x in map(as_int, flat) if x is not None]


def _without_graphs(launch: Launch) -> bool:
    s = launch.settings
    return (
        launch.known.platform == "cpu"
        or s.get("enforce_eager") is True
        or cudagraph_mode(s) == "NONE"
    )


def _open(launch: Launch, load: Load, length: int | None, mnbt: int) -> Iterator[str]:
    """Yield the conditions of one version that cannot be proven, each in words."""
    s = launch.settings
    step = _step(launch, load, load.prompt or length or 0)
    if step is not None and step.requests > 1 and not _never_preempts_less(launch, load, length):
        yield "that no request is preempted for want of KV cache"
    if load.images is not False and launch.known.plain_attention is not True:
        yield "that no prompt has images, whose encoder has MNBT for its budget"
    if SEQS not in s and mnbt < (_most_seqs(launch) or 0):
        yield "that MNBT does not cap vLLM's own max_num_seqs"
    if not _without_graphs(launch):
        yield from _open_graphs(launch, mnbt)
    if (launch.number("long_prefill_token_threshold") or 0) > 0:
        yield "that long_prefill_token_threshold does not depend on MNBT"
    elif (launch.number("max_num_partial_prefills") or 1) > 1:
        yield "that max_num_partial_prefills cuts prompts in the same way"
    for key in ("max_num_scheduled_tokens", "kv_transfer_config", "scheduler_cls"):
        if key in s:
            yield f"that {key} leaves steps as they are"
    if s.get("mamba_cache_mode") == "align":
        yield "that a Mamba cache is aligned in the same way"


def _never_preempts_less(launch: Launch, load: Load, length: int | None) -> bool:
    """Return whether preempted requests fit, too, and each budget has the same KV cache."""
    fixed = "num_gpu_blocks_override" in launch.settings or (
        "kv_cache_memory_bytes" in launch.settings
    )
    both = None if load.prompt is None or load.output is None else load.prompt + load.output
    again = min((x for x in (length, both) if x is not None), default=None)
    if not fixed or again is None:
        return False
    step, mnbt = _step(launch, load, again), launch.number(MNBT)
    return step is not None and mnbt is not None and mnbt >= step.least


def _open_graphs(launch: Launch, mnbt: int) -> Iterator[str]:
    s, seqs = launch.settings, launch.number(SEQS)
    if s.get(ALIGNED) is True or any(_numbers(compilation(s, key)) for key in _GRAPHS):
        if s.get(ALIGNED) is True and seqs is None:
            yield "that its CUDA graphs have the same sizes"
        return
    if any(compilation(s, key) for key in _GRAPHS):
        yield "that its CUDA graphs have the same sizes"
        return
    most = _list_ends(launch)[1]
    end = most if seqs is None else min(2 * seqs * (launch.n + 1), most)
    if mnbt < _next(end):
        yield f"that its CUDA graphs, which may go up to {end} tokens, have the same sizes"
