"""Rules for drafts: room in the batch, settings of the draft, synthetic acceptance.

See :mod:`autotune.engine.rules`.
"""

from __future__ import annotations

import itertools

from autotune.engine.active_requests import fewest_tokens
from autotune.engine.draft_keys import KEY_RULES
from autotune.engine.draft_schedule import KEPT_ON_V1, schedule_problem
from autotune.engine.method_rules import METHOD_RULES
from autotune.engine.rule import SEQS, Launch, Rule
from autotune.study.space import DRAFT, MNBT
from autotune.study.speculative import SCHEDULE

# Methods whose draft is a model with a parallel configuration of its own.
_MODELS = {"dflash", "dspark", "eagle", "eagle3", "draft_model", "mtp", "medusa", "mlp_speculator"}
# Methods that reserve n tokens for each request from 0.33 on; for DFlash and DSpark see
# `fewest_tokens`.
_LOOK_AHEAD = {"eagle", "eagle3", "mtp", "draft_model"}
# Methods none of whose drafts has the interface `SupportsPP`, and targets whose head has it not.
_WITHOUT_PIPELINES = {"dflash", "dspark", "eagle", "eagle3", "medusa"}
_HEADS_WITHOUT_PIPELINES = {
    *("deepseek_v3", "ernie4_5_moe", "exaone_moe", "glm4_moe", "longcat_flash"),
    *("qwen3_next", "qwen3_5", "qwen3_5_moe"),
}
_SCHEDULED = KEPT_ON_V1 | {"dspark"}  # which only model runner V2 has
_PLAYED = f"{DRAFT}synthetic_acceptance_"
_SCHEDULABLE = "max_num_scheduled_tokens"  # a flag from 0.26 on
_SLOTS = (
    "config/vllm.py: VllmConfig._set_max_num_scheduled_tokens, with "
    "config/speculative.py: SpeculativeConfig.max_num_new_slots_for_drafting"
)


def _slots_by_request(launch: Launch) -> str | None:
    """Check 0.24 to 0.27: MNBT - slots·max_num_seqs tokens are left to schedule; 0 are too few."""
    mnbt, (_, words) = launch.number(MNBT), launch.seqs()
    taken, needed = _taken_by_requests(launch), _least_of_requests(launch)
    if mnbt is None or taken is None or mnbt >= taken + _schedulable(launch):
        return None
    more = _schedulable(launch)
    also = f" and {_SCHEDULABLE} = {more}" if more > 1 else ""
    return (
        f"n = {launch.n} with {words}{also} needs MNBT of at least {needed} on {launch.vllm}; "
        f"{mnbt} would fail"
    )


def _taken_by_requests(launch: Launch) -> int | None:
    """Return the tokens that vLLM sets aside for the drafts of all requests."""
    mnbt, (seqs, _) = launch.number(MNBT), launch.seqs()
    if launch.n < 1 or mnbt is None or seqs is None or launch.method is None:
        return None
    # vLLM's own max_num_seqs never exceeds MNBT
    return _slots(launch) * (seqs if SEQS in launch.settings else min(seqs, mnbt))


def _least_of_requests(launch: Launch) -> int | None:
    """Return the smallest MNBT that is safe, which may be more than what vLLM refuses.

    DFlash needs two more for each request: one that the count forgets (issue #51256) and the one
    that is verified; see :mod:`autotune.engine.doubts`.
    """
    taken, seqs = _taken_by_requests(launch), launch.seqs()[0]
    if taken is None or seqs is None:
        return None
    if _schedulable(launch) > 1:
        return taken + _schedulable(launch)
    return (launch.n + 1) * seqs if launch.method == "dflash" else _slots(launch) * seqs + 1


def _slots(launch: Launch) -> int:
    return (launch.n - 1 if launch.parallel else 0) + (launch.method == "draft_model")


def _schedulable(launch: Launch) -> int:
    return max(launch.number(_SCHEDULABLE) or 1, 1)


def _slots_of_one(launch: Launch) -> str | None:
    """Check 0.28 to 0.32: the drafts of one request and a token must fit."""
    return _below(launch, _least_of_one(launch))


def _least_of_one(launch: Launch) -> int | None:
    if launch.n < 1:
        return None
    if launch.method == "dflash" or (launch.parallel and launch.method == "draft_model"):
        return launch.n + 1
    return launch.n if launch.parallel else 1 + (launch.method == "draft_model")


def _lookahead(launch: Launch) -> str | None:
    """Check 0.33: what one request reserves, and a token, must fit."""
    return _below(launch, _least_of_lookahead(launch))


def _least_of_lookahead(launch: Launch) -> int | None:
    if launch.n < 1:
        return None
    if launch.method in {"dflash", "dspark"}:
        return (fewest_tokens(launch) or 0) + 1
    return launch.n + 1 if launch.method in _LOOK_AHEAD else None


def _below(launch: Launch, least: int | None) -> str | None:
    """Return that MNBT is below the least that one request needs, or None."""
    mnbt = launch.number(MNBT)
    if least is None or mnbt is None or mnbt >= least:
        return None
    return f"n = {launch.n} needs MNBT of at least {least} on {launch.vllm}; {mnbt} would fail"


def _nothing_to_schedule(launch: Launch) -> str | None:
    least = launch.number(_SCHEDULABLE)
    late = launch.since((0, 32))
    if least is None or least > 0 or (least == 0 and launch.n < 1 and not late):
        return None
    return f"{_SCHEDULABLE} must be at least 1, not {least}"


def _lora(launch: Launch) -> str | None:
    """Check that a batch of all requests with their drafts fits where there are LoRA adapters."""
    mnbt, (seqs, words), needed = launch.number(MNBT), launch.seqs(), _least_with_lora(launch)
    if mnbt is None or seqs is None or needed is None:
        return None
    # vLLM's own max_num_seqs never exceeds MNBT
    taken = needed if SEQS in launch.settings else min(seqs, mnbt) * (launch.n + 1)
    if mnbt >= taken:
        return None
    return (
        f"with enable_lora, n = {launch.n} and {words} {launch.vllm} needs MNBT of at least "
        f"{needed}; {mnbt} would fail"
    )


def _least_with_lora(launch: Launch) -> int | None:
    seqs, _ = launch.seqs()
    if launch.n < 1 or seqs is None or launch.settings.get("enable_lora") is not True:
        return None
    return seqs * (launch.n + 1)


def _pipelines(launch: Launch) -> str | None:
    """Check 0.24 to 0.29: the draft runs in as many pipeline stages as the target."""
    stages = launch.number("pipeline_parallel_size") or 1
    head = launch.method == "mtp" and launch.draft.kind in _HEADS_WITHOUT_PIPELINES
    if launch.n < 1 or stages <= 1 or not (head or launch.method in _WITHOUT_PIPELINES):
        return None
    return (
        f"{launch.vllm} runs the draft in pipeline_parallel_size = {stages} stages, too, which "
        f"drafts of method {launch.method} cannot"
    )


def _draft_workers(launch: Launch) -> str | None:
    if launch.n < 1:
        return None
    if launch.of_draft("tensor_parallel_size") is not None:
        return "speculative.tensor_parallel_size must be draft_tensor_parallel_size"
    if launch.method not in _MODELS:
        return None
    own = launch.number(f"{DRAFT}draft_tensor_parallel_size")
    workers = launch.number("tensor_parallel_size")
    workers = workers if "tensor_parallel_size" in launch.settings else 1
    if own is None or workers is None or own in (1, workers):
        return None
    return (
        f"draft_tensor_parallel_size = {own} must be 1 or the target's tensor_parallel_size = "
        f"{workers}"
    )


def _draft_length(launch: Launch) -> str | None:
    own, length = launch.number(f"{DRAFT}max_model_len"), launch.number("max_model_len")
    if launch.n < 1 or own is None:
        return None
    if launch.method is not None and launch.method not in _MODELS:
        return None
    most = launch.draft.model_max_len
    if most is not None and own > most:
        return f"speculative.max_model_len = {own} is above the draft's own {most}"
    if length is None and "hf_overrides" not in launch.settings:
        length = launch.known.model_max_len  # the target's is not above it
    if length is None or length < 1 or own <= length:
        return None
    return f"the draft's max_model_len = {own} is above the target's {length}"


def _schedule(launch: Launch) -> str | None:
    schedule, minor = launch.of_draft(SCHEDULE), launch.minor
    if launch.n < 1 or schedule is None or minor is None:
        return None
    if launch.replicas > 1 and minor >= (0, 26):  # it is ignored
        return None
    if minor >= (0, 33) and launch.method not in _SCHEDULED:  # model runner V1 ignores it
        return None
    why = schedule_problem(schedule)
    return None if why is None else f"num_speculative_tokens_per_batch_size: {why}"


def _plays(launch: Launch) -> bool:
    return launch.of_draft("rejection_sample_method") == "synthetic"


def _synthetic(launch: Launch) -> str | None:
    """Check the acceptance that vLLM is told to play, with the words of its own checks."""
    n = launch.n
    rates, length = (launch.of_draft(f"synthetic_acceptance_{x}") for x in ("rates", "length"))
    given = [x for x in (rates, length) if x is not None]
    if n < 1:
        return None
    if not _plays(launch):
        return f"{_PLAYED}… needs rejection_sample_method: synthetic" if given else None
    if len(given) != 1:
        return (
            "rejection_sample_method: synthetic needs one of synthetic_acceptance_rates and _length"
        )
    if isinstance(rates, list):
        return _rates(n, rates)
    if isinstance(length, int | float) and not 1 <= length <= n + 1:
        return f"{_PLAYED}length = {length:g} must be from 1 to n + 1 = {n + 1}"
    return None


def _rates(n: int, rates: list[object]) -> str | None:
    if len(rates) != n:
        return f"{_PLAYED}rates has {len(rates)} entries, and n = {n} needs {n}"
    numbers = [x for x in rates if isinstance(x, int | float)]
    if any(not 0 <= x <= 1 for x in numbers):
        return f"{_PLAYED}rates must be between 0 and 1"
    if any(after > before for before, after in itertools.pairwise(numbers)):
        return f"{_PLAYED}rates must not increase from one token to the next"
    return None


def _synthetic_on_cpu(launch: Launch) -> str | None:
    if launch.n < 1 or not _plays(launch) or launch.known.platform != "cpu":
        return None
    return f"{launch.vllm} has no synthetic acceptance on a CPU: the first request ends the engine"


DRAFT_RULES = (
    Rule(
        "MNBT with room for every request's drafts",
        _slots_by_request,
        _SLOTS,
        first=(0, 24),
        last=(0, 27),
        least=_least_of_requests,
    ),
    Rule(
        "MNBT with room for one request's drafts",
        _slots_of_one,
        _SLOTS,
        first=(0, 28),
        last=(0, 32),
        least=_least_of_one,
    ),
    Rule(
        "MNBT with room for one request's lookahead",
        _lookahead,
        "config/vllm.py: VllmConfig._set_max_num_scheduled_tokens, num_lookahead_tokens",
        first=(0, 33),
        least=_least_of_lookahead,
    ),
    Rule(
        "MNBT with room for every request's drafts and LoRA",
        _lora,
        "engine/arg_utils.py: EngineArgs.create_engine_config",
        least=_least_with_lora,
    ),
    Rule(
        "pipelines with a draft",
        _pipelines,
        "config/model.py: ModelConfig.verify_with_parallel_config, "
        "config/speculative.py: SpeculativeConfig.create_draft_parallel_config",
        last=(0, 29),
    ),
    Rule(
        "tokens to schedule",
        _nothing_to_schedule,
        "config/vllm.py: VllmConfig._set_max_num_scheduled_tokens, "
        "config/scheduler.py: SchedulerConfig.max_num_scheduled_tokens",
        first=(0, 26),
    ),
    Rule(
        "draft_tensor_parallel_size 1 or the target's",
        _draft_workers,
        "config/speculative.py: SpeculativeConfig._verify_and_get_draft_tp, _verify_args",
    ),
    Rule(
        "the draft's max_model_len within its own and the target's",
        _draft_length,
        "config/speculative.py: SpeculativeConfig._maybe_override_draft_max_model_len, "
        "config/model.py: _get_and_verify_max_len",
    ),
    Rule(
        "schedule of n by batch size",
        _schedule,
        "v1/spec_decode/dynamic/utils.py: validate_and_normalize_dynamic_sd_schedule, from "
        "v1/core/sched/scheduler.py: Scheduler.__init__",
    ),
    Rule(
        "synthetic acceptance",
        _synthetic,
        "config/speculative.py: SpeculativeConfig._resolve_synthetic_acceptance_rates, "
        "_verify_args",
    ),
    Rule(
        "synthetic acceptance on a CPU",
        _synthetic_on_cpu,
        "utils/cpu_triton_utils.py: the samplers, with SYNTHETIC_MODE",
    ),
    *KEY_RULES,
    *METHOD_RULES,
)
