"""A study file: what to serve, what load to put on it, what to search, what to optimise.

The only module that knows YAML. Every error names the file and the key and says what is allowed.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import shlex
from collections.abc import Mapping
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from autotune.errors import UserError, one_line
from autotune.study.secrets import MASK, is_secret, masked, secret_values
from autotune.study.space import ALIGNED, DRAFT, MNBT, N, Param, Space, Value

if TYPE_CHECKING:
    from autotune.stats import LatencyFrom

FlagValue = bool | int | float | str | list[str | int | float] | dict[str, Any]

# Set by autotune itself; a study that sets them would launch something we cannot watch over.
OWNED_FLAGS = {
    "host": "servers always bind 127.0.0.1",
    "port": "autotune picks a free port for every launch",
    "model": "write it as server.model",
    "speculative_config": "write it as server.speculative",
    "api_key": "autotune talks to its own server only",
    "uds": "autotune measures over TCP on 127.0.0.1",
}
# Keys of the draft's configuration that are not searched as such.
_NOT_OF_DRAFT = {
    f"{DRAFT}{N}": f"write it as {N}",
    f"{DRAFT}method": "a study has one method",
    f"{DRAFT}model": "a study has one draft",
}
# Limits of a study, far above any use: what is beyond them is a slip, and would end in a lack of
# memory or in an error far from its cause.
_MOST_TEXT = 100_000  # characters of the file: two seconds of reading it
_MOST_VALUES = 20_000  # with every alias written out
_MOST_DEPTH = 50  # pydantic writes 255
_MOST_NUMBER = 2**53  # JSON, floats and SQLite know all whole numbers up to it
_MOST_REQUESTS = 10**6
_MOST_TOKENS = 5 * 10**7  # of all random prompts: 2 GB
_MOST_SECONDS = 10**7  # four months
_MOST_AHEAD = 64
_MOST_POINTS = 10**6  # of a space that can be counted
_MOST_LINE = 500  # characters of a message


def flag_name(name: str) -> str:
    """A flag as vLLM names its argument: ``--max-num-seqs`` and ``max_num_seqs`` are one."""
    return name.removeprefix("--").replace("-", "_")


def _is_flag(name: str) -> bool:
    """True if it is a flag's name, such as ``max_num_seqs`` or ``compilation_config.mode``."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.]*", name) is not None


class Affects(StrEnum):
    """What the value of a key decides; every key of a study carries one of these.

    Attributes:
        RESULT: What a trial's numbers mean. Trials under two values do not compare.
        SCHEDULE: Which trials run, in which order, and how many.
        NOTHING: No number: names, prose, and how long to wait for something that hangs.
    """

    RESULT = "result"
    SCHEDULE = "schedule"
    NOTHING = "nothing"


_T = TypeVar("_T")
Result = Annotated[_T, Affects.RESULT]
Schedule = Annotated[_T, Affects.SCHEDULE]
Nothing = Annotated[_T, Affects.NOTHING]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SpeculativeSpec(BaseModel):
    """The draft; every other key goes to vLLM's ``--speculative-config`` as it is."""

    model_config = ConfigDict(extra="allow", frozen=True)
    other_keys: ClassVar[Affects] = Affects.RESULT

    method: Result[str] = Field(default="dflash", description="vLLM's name of the method")
    model: Result[str] = Field(description="the draft: a folder, a hub name or `demo:draft`")

    @model_validator(mode="after")
    def _fixed_n(self) -> SpeculativeSpec:
        n = (self.model_extra or {}).get(N, 0)
        if type(n) is not int or n < 0:
            raise ValueError(f"{N} must be a whole number from 0 up")
        return self


def _argv(value: object) -> object:
    if isinstance(value, str):
        return tuple(shlex.split(value))
    return value


class ServerSpec(_Model):
    """What is launched for every trial."""

    command: Result[Annotated[tuple[str, ...], BeforeValidator(_argv)] | None] = Field(
        default=None,
        description="argv in front of the model and the flags: `vllm serve`, `/path/to/python -m "
        "vllm.entrypoints.openai.api_server`, or any other, such as a container; without it, the "
        "vLLM of autotune's own environment",
    )
    model: Result[str] = Field(description="the target: a folder, a hub name or `demo:target`")
    flags: Result[dict[str, FlagValue]] = Field(
        default_factory=dict,
        description="vLLM flags that stay fixed; true for a switch, false for its --no- form",
    )
    env: Result[dict[str, str]] = Field(default_factory=dict, description="environment variables")
    speculative: SpeculativeSpec | None = Field(default=None, description="the draft")
    launch: Nothing[Literal["warm", "cold"]] = Field(
        default="warm",
        description="warm: servers are forked from a process that has imported vLLM, where that is "
        "possible; cold: each one imports it anew",
    )
    ahead: Nothing[int] = Field(
        default=0,
        ge=0,
        le=_MOST_AHEAD,
        description="so many servers of the next points, at most, are started together with the "
        "one whose turn it is, and idle until theirs; on a GPU with `kv-cache-memory-bytes` only",
    )
    health_timeout_s: Nothing[float] = Field(
        default=900, gt=0, le=_MOST_SECONDS, description="longest wait for /health"
    )
    stop_timeout_s: Nothing[float] = Field(
        default=20,
        gt=0,
        le=_MOST_SECONDS,
        description="wait after SIGTERM before the whole tree is killed",
    )

    def settings(self, point: Mapping[str, FlagValue]) -> dict[str, FlagValue]:
        """Return every launch setting of a point, fixed and searched.

        Flags have their own names. Keys of the draft begin with ``speculative.``, but for n.

        Args:
            point: Values that are searched, or that a load sweep changes.
        """
        draft = self.speculative.model_dump() if self.speculative else {}
        fixed = {k if k == N else f"{DRAFT}{k}": v for k, v in draft.items()}
        return {**self.flags, **fixed, **point}

    def draft_settings(self, point: Mapping[str, FlagValue]) -> dict[str, Any]:
        """Return what goes into ``--speculative-config`` at a point, n included where it is set."""
        found = self.settings(point).items()
        return {k.removeprefix(DRAFT): v for k, v in found if k == N or k.startswith(DRAFT)}

    @field_validator("env", mode="before")
    @classmethod
    def _env_words(cls, value: object) -> object:
        if isinstance(value, dict):
            return {
                k: str(v) if isinstance(v, int | float) and not isinstance(v, bool) else v
                for k, v in value.items()
            }
        return value

    @field_validator("env")
    @classmethod
    def _env_names(cls, value: dict[str, str]) -> dict[str, str]:
        for key in value:
            if not key or "=" in key:
                raise ValueError(f"{key!r} is no name of an environment variable")
        return value

    @field_validator("command")
    @classmethod
    def _command_not_empty(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and not value:
            raise ValueError("must not be empty; leave the key out for this environment's vLLM")
        return value

    @field_validator("flags")
    @classmethod
    def _flags(cls, value: dict[str, FlagValue]) -> dict[str, FlagValue]:
        out: dict[str, FlagValue] = {}
        for key, v in value.items():
            name = flag_name(key)
            if not _is_flag(name):
                raise ValueError(f"{key!r} is no name of a flag; write it in full, such as seed")
            if name in OWNED_FLAGS:
                raise ValueError(f"{key} is not yours to set: {OWNED_FLAGS[name]}")
            if name.startswith(DRAFT):
                raise ValueError(f"{key} goes into server.speculative")
            if name in out:
                raise ValueError(f"{key} is given twice")
            out[name] = v
        return out


class RandomPrompts(_Model):
    """Prompts of token ids drawn uniformly, as `vllm bench serve --dataset-name random`."""

    input_len: Result[int] = Field(gt=0, le=_MOST_TOKENS, description="tokens of every prompt")
    vocab_low: Result[int] = Field(default=256, ge=0, description="lowest token id drawn")
    vocab_high: Result[int] = Field(
        default=32000, gt=0, le=2**31, description="one above the highest id drawn"
    )

    @model_validator(mode="after")
    def _order(self) -> RandomPrompts:
        if self.vocab_low >= self.vocab_high:
            raise ValueError("vocab_low must be below vocab_high")
        return self

    def why_not(self, prompts: int) -> str | None:
        """Why so many different prompts cannot be drawn, in words; None if they can."""
        # two ids or more, and 64 of them: enough for any number of prompts
        possible = (self.vocab_high - self.vocab_low) ** min(self.input_len, 64)
        if possible < prompts:
            return (
                f"only {possible} different prompts exist with input_len {self.input_len} and ids "
                f"from {self.vocab_low} to {self.vocab_high - 1}; the study needs {prompts}"
            )
        if self.input_len * prompts > _MOST_TOKENS:
            return (
                f"{prompts} prompts with input_len {self.input_len} are more than "
                f"{_MOST_TOKENS} tokens; take fewer (workload.num_prompts) or shorter ones"
            )
        return None


def _file(value: object) -> object:
    return {"file": value} if isinstance(value, str) else value


class ShareGptPrompts(_Model):
    """Conversations as ShareGPT has them, sent as chats; a text instead of a mapping is the file.

    What is left out by length, and why so by default: ``is_valid_sequence`` of vLLM's benchmark
    (``vllm/benchmarks/datasets/datasets.py``).
    """

    file: Result[Path] = Field(
        description="JSON, relative to the study file: a list of objects with `conversations`, a "
        "list of turns with `from` and `value`; or one such object a line"
    )
    turns: Result[Literal["first", "all"]] = Field(
        default="first",
        description="what is sent: the first human turn, or all turns up to the last human one",
    )
    tokenizer: Result[str | None] = Field(
        default=None,
        description="whose tokens are counted: a folder or a hub name; without it server.model",
    )
    min_len: Result[int] = Field(
        default=4,
        ge=1,
        le=_MOST_TOKENS,
        description="tokens; shorter prompts, and shorter answers with `output_len: recorded`, are "
        "left out",
    )
    max_input_len: Result[int] = Field(
        default=1024, ge=1, le=_MOST_TOKENS, description="tokens; longer prompts are left out"
    )
    max_total_len: Result[int] = Field(
        default=2048,
        ge=1,
        le=_MOST_TOKENS,
        description="tokens; what is longer, prompt and answer together, is left out",
    )


class ReplayPrompts(_Model):
    """A recorded request log, sent at its own times; a text instead of a mapping is the file."""

    file: Result[Path] = Field(
        description="JSONL, relative to the study file; each line has `timestamp` (seconds, or "
        "ISO 8601) and `messages` or `prompt`"
    )
    speed: Result[float] = Field(
        default=1.0,
        ge=1e-6,
        le=1e6,
        description="2: the gaps between the requests are half of the recorded ones",
    )


class WorkloadSpec(_Model):
    """The load: the same requests, at the same times, for every trial of the study."""

    prompts: Result[Path | None] = Field(
        default=None,
        description="a JSONL file, relative to the study file; each line has `messages` (chat) or "
        "`prompt` (text)",
    )
    random: RandomPrompts | None = Field(default=None, description="or random tokens")
    sharegpt: Annotated[ShareGptPrompts | None, BeforeValidator(_file)] = Field(
        default=None, description="or the conversations of a ShareGPT file"
    )
    replay: Annotated[ReplayPrompts | None, BeforeValidator(_file)] = Field(
        default=None, description="or a recorded request log, at its own times (open loop)"
    )
    output_len: Result[Annotated[int, Field(gt=0, le=10**9)] | Literal["recorded"]] = Field(
        description="max_tokens of every request; `recorded`: the length of each request's "
        "recorded answer"
    )
    num_prompts: Result[int] = Field(
        gt=0, le=_MOST_REQUESTS, description="most measured requests of a trial"
    )
    confirm_prompts: Schedule[int | None] = Field(
        default=None,
        gt=0,
        le=_MOST_REQUESTS,
        description="requests of a trial that measures again, all of them sent; without it "
        "num_prompts",
    )
    warmup_prompts: Result[int | None] = Field(
        default=None,
        ge=0,
        le=_MOST_REQUESTS,
        description="most requests before the measurement, with prompts of their own; they end "
        "when the server is warm. Without it 24, or 4 × max_concurrency if that is more",
    )
    repeat: Result[bool] = Field(
        default=False,
        description="begin again with the first prompt after the last; needs "
        "`enable-prefix-caching: false` in server.flags",
    )
    request_rate: Result[float] = Field(
        default=math.inf,
        ge=1e-6,
        allow_inf_nan=True,
        description="arrivals per second; .inf: all at once",
    )
    arrivals: Result[Literal["poisson", "constant"]] = Field(
        default="poisson", description="how they are spread: at random, or evenly"
    )
    max_concurrency: Result[int | None] = Field(
        default=None, gt=0, le=_MOST_REQUESTS, description="most requests at a time"
    )
    latency_from: Result[Literal["intended", "send"] | None] = Field(
        default=None,
        description="where a latency begins: at the intended start (without it, with a "
        "request_rate) or at the sending (without it, in a closed loop; vLLM's benchmark always)",
    )
    ignore_eos: Result[bool] = Field(default=True, description="go on after the end-of-text token")
    temperature: Result[float] = Field(
        default=0.0, ge=0, description="of the sampling; 0: the likeliest token always"
    )
    seed: Result[int] = Field(
        default=0, ge=0, lt=2**32, description="chooses and orders prompts, and arrival times"
    )
    request_timeout_s: Nothing[float] = Field(
        default=600, gt=0, le=_MOST_SECONDS, description="longest life of a request"
    )
    hang_timeout_s: Nothing[float] = Field(
        default=120,
        gt=0,
        le=_MOST_SECONDS,
        description="without a token for so long, a request hangs",
    )

    @model_validator(mode="after")
    def _one_source(self) -> WorkloadSpec:
        given = [self.prompts, self.random, self.sharegpt, self.replay]
        if sum(x is not None for x in given) != 1:
            raise ValueError("needs exactly one of `prompts`, `random`, `sharegpt` and `replay`")
        if self.random is not None and self.output_len == "recorded":
            raise ValueError("output_len: random prompts have no recorded answers; give a number")
        if self.repeat and self.source is None:
            raise ValueError("repeat: random prompts do not run short")
        if self.repeat and self.replay is not None:
            raise ValueError("repeat: a log is sent once, at its own times")
        if self.replay is not None:
            for key in ("request_rate", "arrivals"):
                if key in self.model_fields_set:
                    raise ValueError(f"{key}: the log has its own times; see replay.speed")
        if self.max_concurrency is None and not self.open_loop:
            raise ValueError(
                "needs max_concurrency (closed loop), request_rate (open loop), or both"
            )
        return self

    @property
    def source(self) -> tuple[str, Path] | None:
        """The file of the requests, as the study names it, with its key; None: there is none."""
        if self.prompts is not None:
            return "prompts", self.prompts
        if self.sharegpt is not None:
            return "sharegpt.file", self.sharegpt.file
        return None if self.replay is None else ("replay.file", self.replay.file)

    @property
    def open_loop(self) -> bool:
        """True if requests have times of their own, whether or not earlier ones have ended."""
        return self.replay is not None or not math.isinf(self.request_rate)

    @property
    def places(self) -> int | None:
        """Concurrency of a closed loop; None: an open loop, also one with a cap."""
        return None if self.open_loop else self.max_concurrency

    def keeps_busy(self, warmup: int) -> bool:
        """Whether so many warm-up requests keep all places busy before and after the measured ones.

        A place alone needs none: it is never one of several that are empty.
        """
        return self.places is None or self.places == 1 or warmup >= self.places

    @property
    def most_warmup(self) -> int:
        """Most warm-up requests: ``warmup_prompts``, or enough to see a steady server."""
        if self.warmup_prompts is not None:
            return self.warmup_prompts
        return max(24, 4 * (self.max_concurrency or 1))

    @property
    def latency_origin(self) -> LatencyFrom:
        """Where latencies begin.

        In a closed loop a client sends when it has its last answer: the sending. With a request
        rate, users come whether or not the server is ready, and a late sender must not hide the
        waiting that caused it ("coordinated omission", G. Tene, "How NOT to measure latency",
        2013): the intended start, also where a cap on concurrency makes them wait.
        """
        return self.latency_from or ("intended" if self.open_loop else "send")


class MeasureSpec(_Model):
    """How long a trial is measured, and when it is measured again."""

    precision: Result[float] = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="measuring ends when the 95 % interval of every objective is within ± this "
        "share of its value, or after workload.num_prompts requests",
    )
    min_prompts: Result[int] = Field(
        default=32,
        gt=0,
        le=_MOST_REQUESTS,
        description="fewest measured requests, before any end is considered",
    )
    dominated_error: Result[float] = Field(
        default=0.05,
        ge=0,
        lt=0.5,
        description="a trial that is worse in everything than another one ends early; this is the "
        "chance of doing so wrongly. 0: never",
    )
    repeat_disturbed: Result[bool] = Field(
        default=True, description="launch once more if something else used the machine meanwhile"
    )


class SloSpec(_Model):
    """Limits that a good request keeps, all of them, as `vllm bench serve --goodput`."""

    ttft_ms: Result[float | None] = Field(default=None, gt=0, description="most TTFT, ms")
    tpot_ms: Result[float | None] = Field(default=None, gt=0, description="most TPOT, ms")
    e2el_ms: Result[float | None] = Field(default=None, gt=0, description="most E2EL, ms")

    @model_validator(mode="after")
    def _some_limit(self) -> SloSpec:
        if not self.limits():
            raise ValueError(f"needs a limit: {', '.join(_keys(SloSpec))}")
        return self

    def limits(self) -> dict[str, float]:
        """Those that were given."""
        return self.model_dump(exclude_none=True)


class ObjectiveSpec(_Model):
    """One objective: a built-in one, or one of your own."""

    name: Result[str] = Field(
        description="of a built-in objective, or of an entry point of the group "
        "`autotune.objectives`; with `file`, the file's name without .py"
    )
    direction: Result[Literal["maximize", "minimize"] | None] = Field(
        default=None, description="without it, the objective's own"
    )
    file: Result[Path | None] = Field(
        default=None,
        description="a Python file with an OBJECTIVE of your own, relative to the study file",
    )
    slo: SloSpec | None = Field(default=None, description="limits of a good request, for goodput")
    usd_per_hour: Result[float | None] = Field(
        default=None, gt=0, description="price of the machine, for cost"
    )

    @model_validator(mode="after")
    def _named_as_its_file(self) -> ObjectiveSpec:
        if self.file is not None and self.name != self.file.stem:
            raise ValueError(f"name must be {self.file.stem}, as the file; or leave it out")
        return self

    @model_serializer(mode="wrap")
    def _without_what_it_lacks(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keys that were unknown to the first studies are left out of those."""
        body: dict[str, Any] = handler(self)
        return {k: v for k, v in body.items() if v is not None or k == "direction"}


def _objective(value: object) -> object:
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and isinstance(value.get("file"), str):
        return {"name": Path(value["file"]).stem, **value}
    return value


class SearchSpec(_Model):
    """How the next point is chosen."""

    method: Schedule[Literal["gp", "grid", "random"]] = Field(
        default="gp",
        description="Gaussian process that knows speculative decoding, every point in turn, or "
        "blind draws",
    )


class BudgetSpec(_Model):
    """When to stop; the command line's options of the same name win."""

    trials: Schedule[int] = Field(
        default=40, gt=0, le=10**6, description="total number of finished trials"
    )
    confirm: Schedule[int | None] = Field(
        default=None,
        ge=0,
        description="how many of them measure the winners again, beside the baseline, at most "
        "half; without it a third, at most 8, and none below 4",
    )
    replicates: Schedule[int | None] = Field(
        default=None,
        ge=0,
        description="trials of the search that launch the baseline or the best point once more, to "
        "see how much launches of one point differ; without it one of 8, at most 3, and none in a "
        "grid",
    )
    converged: Schedule[float] = Field(
        default=0.005,
        ge=0,
        lt=1,
        description="the search ends before its trials are used up when no further launch is "
        "expected to gain so much, as a share of the front's hypervolume; 0: never",
    )
    timeout_minutes: Schedule[float | None] = Field(
        default=None,
        gt=0,
        le=_MOST_SECONDS / 60,
        description="no launch begins after this time; without it there is no limit",
    )

    def confirm_of(self, trials: int) -> int:
        """How many of ``trials`` are held back for the confirmation."""
        if self.confirm is not None:
            return min(self.confirm, trials // 2)
        held = min(8, trials // 3)
        return held if held >= 4 else 0  # A B B A needs four

    def replicates_of(self, searched: int) -> int:
        """How many of ``searched`` trials launch a point once more, to see how launches differ."""
        return min(3, searched // 8) if self.replicates is None else self.replicates


class StudySpec(_Model):
    """A whole study file."""

    name: Nothing[str] = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        description="also the study's name in the database; letters, digits, `.`, `_`, `-`",
    )
    description: Nothing[str] = Field(default="", description="prose for people")
    server: ServerSpec = Field(description="what is launched for every trial")
    space: Result[dict[str, Param]] = Field(
        min_length=1,
        description="vLLM flags; `speculative.KEY` for a key of server.speculative, such as "
        "speculative.draft_tensor_parallel_size; and `aligned_cudagraphs`, a choice of false and "
        "true: CUDA graphs for multiples of n + 1 tokens",
    )
    baseline: Result[dict[str, Value]] = Field(
        default_factory=dict,
        description="where the first trial stands; without a key, n = 0 and vLLM's own default",
    )
    workload: WorkloadSpec = Field(description="the load that is put on it")
    measure: MeasureSpec = Field(
        default_factory=MeasureSpec, description="how long a trial is measured"
    )
    objectives: list[Annotated[ObjectiveSpec, BeforeValidator(_objective)]] = Field(
        default_factory=lambda: [
            ObjectiveSpec(name="throughput"),
            ObjectiveSpec(name="p95_latency"),
        ],
        min_length=1,
        max_length=3,
        description="one to three, the most important one first; names, or mappings",
    )
    search: SearchSpec = Field(
        default_factory=SearchSpec, description="how the next point is chosen"
    )
    budget: BudgetSpec = Field(default_factory=BudgetSpec, description="when to stop")

    @model_validator(mode="before")
    @classmethod
    def _tokenizer(cls, value: Any) -> Any:
        """A conversation's length is counted in the target's tokens unless the study says whose."""
        match value:
            case {"server": {"model": str(model)}, "workload": {"sharegpt": given} as load}:
                given = _file(given)
                if isinstance(given, dict):
                    sharegpt = {**given, "tokenizer": given.get("tokenizer") or model}
                    return {**value, "workload": {**load, "sharegpt": sharegpt}}
        return value

    @field_validator("space")
    @classmethod
    def _names(cls, value: dict[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, p in value.items():
            name = flag_name(key)
            if not _is_flag(name):
                raise ValueError(f"{key!r} is no name of a flag; write it in full, such as seed")
            if name in OWNED_FLAGS:
                raise ValueError(f"{key} cannot be searched: {OWNED_FLAGS[name]}")
            if name in _NOT_OF_DRAFT:
                raise ValueError(f"{key} cannot be searched: {_NOT_OF_DRAFT[name]}")
            if name in out:
                raise ValueError(f"{key} is given twice")
            out[name] = p
        return out

    @field_validator("baseline")
    @classmethod
    def _baseline_names(cls, value: dict[str, Value]) -> dict[str, Value]:
        out: dict[str, Value] = {}
        for key, v in value.items():
            if flag_name(key) in out:
                raise ValueError(f"{key} is given twice")
            out[flag_name(key)] = v
        return out

    @model_validator(mode="after")
    def _consistent(self) -> StudySpec:
        for name in self.space:
            if name in self.server.flags:
                raise ValueError(
                    f"space.{name}: also fixed in server.flags; keep it in one of the two"
                )
        fixed_n = (self.server.speculative.model_extra or {}) if self.server.speculative else {}
        for name in self.space:
            if name.startswith(DRAFT) and self.server.speculative is None:
                raise ValueError(f"space.{name}: needs server.speculative with the draft model")
            if name.removeprefix(DRAFT) in fixed_n and name.startswith(DRAFT):
                raise ValueError(
                    f"space.{name}: also fixed in server.speculative; keep it in one of the two"
                )
        self._check_aligned()
        if N in self.space:
            if N in fixed_n:
                raise ValueError(
                    f"space.{N}: also fixed in server.speculative; keep it in one of the two"
                )
            p = self.space[N]
            values = p.values()
            if values is None or not all(type(v) is int and v >= 0 for v in values):
                raise ValueError(f"space.{N}: must be whole numbers from 0 up; use type: int")
            if self.server.speculative is None and any(v for v in values):
                raise ValueError(f"space.{N}: needs server.speculative with the draft model")
        elif N in self.server.flags:
            raise ValueError(f"server.flags.{N}: is no flag of vLLM; search it in space")
        if MNBT in self.space and not all(
            type(v) is int for v in self.space[MNBT].values() or [0.5]
        ):
            raise ValueError(f"space.{MNBT}: must be whole numbers; use type: pow2 or int")
        for key in self.baseline:
            if key not in self.space:
                raise ValueError(f"baseline.{key}: is not a parameter of space")
        if (size := self.to_space().size() or 0) > _MOST_POINTS:
            raise ValueError(
                f"space: has {size} points, more than {_MOST_POINTS}; take fewer or larger steps"
            )
        load = self.workload
        if load.repeat and self.server.flags.get("enable_prefix_caching") is not False:
            raise ValueError(
                "workload.repeat: a prompt that comes again is read from the prefix cache; set "
                "enable-prefix-caching: false in server.flags"
            )
        measured = max(load.num_prompts, load.confirm_prompts or 0)
        if load.random and (why := load.random.why_not(measured + load.most_warmup)):
            raise ValueError(f"workload.random: {why}")
        names = [o.name for o in self.objectives]
        if len(set(names)) < len(names):
            raise ValueError("objectives: the same objective is listed twice")
        return self

    def _check_aligned(self) -> None:
        """CUDA graphs for multiples of n + 1: for how many requests, and nobody else sets them."""
        flags, where = self.server.flags, "space" if ALIGNED in self.space else "server.flags"
        if ALIGNED not in self.space and ALIGNED not in flags:
            return

        def values(name: str) -> tuple[object, ...]:
            return self.space[name].values() or () if name in self.space else (flags.get(name),)

        if not all(isinstance(v, bool) for v in values(ALIGNED) or (0,)):
            raise ValueError(f"{where}.{ALIGNED}: is a switch; write true or false")
        if not all(type(v) is int and v >= 1 for v in values("max_num_seqs") or (0,)):
            raise ValueError(f"{where}.{ALIGNED}: needs max_num_seqs, a whole number from 1 up")
        config = flags.get("compilation_config")
        others = {*flags, *self.space, *(config if isinstance(config, dict) else ())}
        if any("cudagraph_capture_size" in name for name in others):
            raise ValueError(f"{where}.{ALIGNED}: the sizes are also set by hand; keep one of both")

    def to_space(self) -> Space:
        """The searched parameters."""
        return Space(self.space)

    def settings(self, point: Mapping[str, FlagValue]) -> dict[str, FlagValue]:
        """Return every launch setting of a point: :meth:`ServerSpec.settings`."""
        return self.server.settings(point)

    def shown(self, left_out: Mapping[str, Any]) -> dict[str, Any]:
        """The study as plain data with its secrets masked; without the keys ``left_out``."""
        body = self.model_dump(mode="json", exclude=dict(left_out))
        body["server"]["env"] = _masked_env(self.server.env)
        return body


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice (PyYAML would silently keep the last).

    And aliases that grow without bounds ("a billion laughs") or stand in themselves.
    """

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _written_out(node, {}) > _MOST_VALUES:
            raise yaml.MarkedYAMLError(
                problem=f"has more than {_MOST_VALUES} values, its aliases written out"
            )
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _written_out(node: yaml.Node, known: dict[int, int | None]) -> int:
    """How many values a node has with every alias in it written out."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if (size := known.get(id(node), 0)) is None:
        raise yaml.MarkedYAMLError(
            problem="an alias stands in what it names", problem_mark=node.start_mark
        )
    if size == 0:
        known[id(node)] = None  # under way
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if pairs else node.value
        size = known[id(node)] = 1 + sum(_written_out(part, known) for part in parts)
    return size


def _not_plain(value: object, key: str = "", depth: int = 0) -> tuple[str, str] | None:
    """The first value that JSON, a command line or the database cannot take: its key, and why."""
    if depth > _MOST_DEPTH:
        return key, "is nested too deeply"
    inner: list[tuple[str, object]] = []
    dot = f"{key}." if key else ""
    match value:
        case dict():
            for k, v in value.items():
                if not isinstance(k, str):
                    return key, f"the key {_shown(k)} is no text; put it in quotes"
                if why := _no_text(k):
                    return key, f"the key {_shown(k)} {why}"
                inner.append((f"{dot}{k[:60]}", v))
        case list():
            inner = [(f"{dot}{i}", v) for i, v in enumerate(value)]
        case str():
            return (key, why) if (why := _no_text(value)) else None
        case bool() | None:
            return None
        case int():
            if abs(value) > _MOST_NUMBER:
                return key, f"must be a number of at most {_MOST_NUMBER}"
        case float():
            if math.isnan(value) or (math.isinf(value) and key != "workload.request_rate"):
                return key, "must be a finite number"
        case _:
            return key, f"is a {type(value).__name__} to YAML; put it in quotes to make it a text"
    return next((bad for k, v in inner if (bad := _not_plain(v, k, depth + 1))), None)


def _no_text(text: str) -> str | None:
    """Why no program, no terminal or no file takes a text; None: it can be used."""
    bad = next((c for c in text if (c < " " and c not in "\t\n\r") or c == "\x7f"), None)
    bad = bad or next((c for c in text if "\x80" <= c < "\xa0" or "\ud800" <= c <= "\udfff"), None)
    return None if bad is None else f"has the character U+{ord(bad):04X}, which it must not"


def _shown(value: object) -> str:
    """A value from a study file in a message."""
    if isinstance(value, int) and abs(value) > _MOST_NUMBER:
        return "a huge number"
    text = json.dumps(value, default=str) if isinstance(value, str | list) else str(value)
    return text if len(text) <= 60 else text[:60] + "…"


def _refused(path: Path, text: str, where: str = "") -> UserError:
    """What is wrong with a study file, as one line."""
    name = str(path)
    name = name if len(name) <= 200 else name[:199] + "…"
    return UserError(one_line(f"{name}{where}: {text}", _MOST_LINE))


class LoadedStudy(_Model):
    """A study with the place it came from."""

    spec: StudySpec
    path: Path
    text: str

    @property
    def base(self) -> Path:
        """Folder that the study's relative paths start from."""
        return self.path.parent


def _masked_env(env: Mapping[str, str]) -> dict[str, str]:
    return {k: MASK if is_secret(k, v) else v for k, v in env.items()}


def text_without_secrets(loaded: LoadedStudy) -> str:
    """A study's text as it may be stored: the secrets of ``server.env`` as ``***``.

    The text stays as it is around them, unless it is written so that they cannot be cut out.
    """
    env = loaded.spec.server.env
    secret = {k for k, v in env.items() if is_secret(k, v)}
    if not secret:
        return loaded.text
    text = loaded.text
    for start, end in sorted(_places(loaded.text, secret), reverse=True):
        old = text[start:end]
        text = text[:start] + f'"{MASK}"' + old[len(old.rstrip()) :] + text[end:]
    # a comment may have one, too
    text = masked(text, secret_values({k: env[k] for k in secret}))
    raw = yaml.load(loaded.text, Loader=_Loader)  # noqa: S506 – a SafeLoader
    given = raw["server"]["env"]
    raw["server"] = {**raw["server"], "env": {**given, **dict.fromkeys(secret, MASK)}}
    try:
        if yaml.load(text, Loader=_Loader) == raw:  # noqa: S506
            return text
    except (yaml.YAMLError, ValueError):
        pass  # an anchor went with it
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


def _places(text: str, secret: set[str]) -> set[tuple[int, int]]:
    """Where in a study's text the values of these variables stand."""
    node: Any = yaml.compose(text, Loader=_Loader)
    for key in ("server", "env"):
        node = next((v for k, v in node.value if k.value == key), yaml.MappingNode("", []))
    return {
        (v.start_mark.index, v.end_mark.index)
        for k, v in node.value
        if isinstance(v, yaml.ScalarNode) and k.value in secret
    }


def studies_folder() -> Path:
    """The bundled studies: inside an installed package, beside it in a checkout."""
    inside = Path(str(files("autotune"))) / "studies"
    return inside if inside.is_dir() else Path(str(files("autotune"))).parent / "studies"


def bundled_studies() -> list[str]:
    """Names of the bundled studies."""
    return sorted(p.stem for p in studies_folder().glob("*.yaml"))


def find_study(name: str) -> Path:
    """The file of a study that is given by path or by the name of a bundled one.

    Raises:
        UserError: there is no such file and no such bundled study.
    """
    path = Path(name)
    try:
        if path.is_file():
            return path
        if path.is_dir():
            raise _refused(path, "is a folder; name the study's YAML file")
        if path.exists():
            raise _refused(path, "is no regular file; name the study's YAML file")
    except (OSError, ValueError) as e:  # a name too long, a folder that is closed to us, a NUL
        raise _refused(path, f"cannot be read: {getattr(e, 'strerror', None) or e}") from e
    bundled = bundled_studies()
    if name in bundled:
        return studies_folder() / f"{name}.yaml"
    if os.sep not in name and path.suffix not in {".yaml", ".yml"}:
        close = difflib.get_close_matches(name[:100], bundled, n=1)
        hint = f"did you mean {close[0]}?" if close else f"bundled are {', '.join(bundled)}"
        raise _refused(path, f"no such file, and no bundled study has this name; {hint}")
    raise _refused(path, "no such file; `autotune init` writes a study file")


def load_study(name: str) -> LoadedStudy:
    """Reads and checks a study, given by path or bundled name.

    Raises:
        UserError: one line that names file, key and what is allowed.
    """
    path = find_study(name)
    try:
        with path.open(encoding="utf-8") as f:
            text = f.read(_MOST_TEXT + 1)
    except UnicodeDecodeError as e:
        raise _refused(path, f"is not UTF-8 text (byte {e.start})") from e
    except OSError as e:
        raise _refused(path, f"cannot be read: {e.strerror}") from e
    return parse_study(text, path)


def parse_study(text: str, path: Path, *, check_files: bool = True) -> LoadedStudy:
    """Checks the text of a study file; ``path`` is for messages and relative paths.

    Args:
        check_files: Also that the files it names exist; a stored study is read without.

    Raises:
        UserError: one line that names file, key and what is allowed.
    """
    if len(text) > _MOST_TEXT:
        raise _refused(path, f"has more than {_MOST_TEXT} characters: is it a study file?")
    try:
        raw = yaml.load(text, Loader=_Loader)  # noqa: S506 – a SafeLoader
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise _refused(path, e.problem or "is not YAML", where) from e
    except RecursionError as e:
        raise _refused(path, "is nested too deeply") from e
    except (yaml.YAMLError, ValueError) as e:
        raise _refused(path, f"is not YAML: {' '.join(str(e).split())}") from e
    except (AttributeError, LookupError, TypeError) as e:  # PyYAML's own, of `!!bool maybe`
        raise _refused(path, "is not YAML: a value does not fit its !!tag") from e
    if not isinstance(raw, dict):
        raise _refused(path, f"must be a mapping with the keys {', '.join(_keys(StudySpec))}")
    if bad := _not_plain(raw):
        raise _refused(path, ": ".join(filter(None, bad)))
    try:
        spec = StudySpec.model_validate(raw)
    except ValidationError as e:
        raise _refused(path, _one_line(e)) from e
    loaded = LoadedStudy(spec=spec, path=path, text=text)
    if check_files and spec.workload.source is not None:
        key, file = spec.workload.source
        if not _is_file(loaded.base / file):
            kind = "JSON" if spec.workload.sharegpt else "JSONL"
            raise _refused(
                path,
                f"workload.{key}: {_shown(str(loaded.base / file))} does not exist; give a {kind} "
                "file, relative to the study file",
            )
    return loaded


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, a folder that is closed to us
        return False


def _keys(model: type[BaseModel]) -> list[str]:
    return list(model.model_fields)


_SECTIONS: dict[tuple[str, ...], type[BaseModel]] = {
    (): StudySpec,
    ("server",): ServerSpec,
    ("workload",): WorkloadSpec,
    ("workload", "random"): RandomPrompts,
    ("workload", "sharegpt"): ShareGptPrompts,
    ("workload", "replay"): ReplayPrompts,
    ("measure",): MeasureSpec,
    ("search",): SearchSpec,
    ("budget",): BudgetSpec,
    ("objectives",): ObjectiveSpec,
    ("objectives", "slo"): SloSpec,
}
_PARAM_KEYS = {
    "int": ["type", "low", "high", "step"],
    "pow2": ["type", "low", "high"],
    "float": ["type", "low", "high", "log"],
    "choice": ["type", "choices"],
}


def _one_line(error: ValidationError) -> str:
    """All problems of a study file on one line, the first one in full."""
    problems = [_problem(e) for e in error.errors()[:100]]
    # one wrong value tried against a union gives several errors for the same key: keep the first
    first_of_key = list(dict(reversed(problems)).items())[::-1]
    lines = [f"{key}: {text}" if key else text for key, text in first_of_key]
    more = f" (and {len(lines) - 1} more: {'; '.join(lines[1:3])})" if len(lines) > 1 else ""
    return f"{lines[0]}{more}"


def _problem(e: Mapping[str, Any]) -> tuple[str, str]:
    loc = [str(part)[:60] for part in e["loc"]]
    kind = None
    if loc[:1] == ["space"] and len(loc) > 2 and loc[2] in _PARAM_KEYS:
        kind = loc.pop(2)  # pydantic puts the union's tag into the path
    if loc[:2] == ["server", "flags"]:
        loc = loc[:3]  # … and the union's member types
    if loc[:1] == ["baseline"]:
        loc = loc[:2]
    if loc[:2] in (["server", "command"], ["workload", "output_len"]):
        loc = loc[:2]
    hide = loc[:2] == ["server", "env"]  # it may be a secret
    key = ".".join(loc)
    if e["type"] == "extra_forbidden":
        section = tuple(p for p in loc[:-1] if not p.isdigit())
        allowed = _PARAM_KEYS[kind] if kind else _keys(_SECTIONS.get(section, StudySpec))
        close = difflib.get_close_matches(loc[-1], allowed, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return key, f"unknown key; {hint}allowed are {', '.join(allowed)}"
    if e["type"] == "missing":
        return key, "is missing"
    if e["type"] in {"union_tag_not_found", "union_tag_invalid"}:
        return f"{key}.type", f"must be one of {', '.join(_PARAM_KEYS)}"
    message = str(e["msg"]).removeprefix("Value error, ")
    if e["type"] == "value_error":
        return key, message  # our own words
    if loc[:2] == ["server", "flags"]:
        message = "must be true, false, a number, a word, a list or a mapping"
    if loc == ["workload", "output_len"]:
        message = "must be a whole number from 1 up, or recorded"
    message = message[0].lower() + message[1:]
    if hide:
        return key, message
    shown = json.dumps(e.get("input"), default=str)[:61]
    return key, f"{message}, not {shown[:60]}{'…' if len(shown) > 60 else ''}"
