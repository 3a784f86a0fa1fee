"""The keys of a study file: what to serve, what load to put on it, what to search and optimize.

Every error names the key and says what is allowed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    field_validator,
    model_validator,
)

from autotune.study.arms import MOST_ARMS, ArmName, ArmSpec, why_clash
from autotune.study.keys import (
    MOST_REQUESTS,
    MOST_SECONDS,
    Model,
    Nothing,
    Result,
    Schedule,
)
from autotune.study.objective_spec import NamedObjective, ObjectiveSpec
from autotune.study.rehearsal import (
    AcceptanceSpec,
    Played,
    RehearsalSpec,
    played,
)
from autotune.study.secrets import MASK, is_secret
from autotune.study.space import ALIGNED, ARM, DRAFT, MNBT, N, Param, Space, Value
from autotune.study.speculative import SpeculativeSpec
from autotune.study.unsaid import unsaid_label
from autotune.study.ways import space_of, why_no_baseline
from autotune.study.workload import WorkloadSpec, prompts_file

FlagValue = bool | int | float | str | list[str | int | float] | dict[str, Any] | None

# Flags that autotune sets. A study that sets them would launch a server that cannot be supervised.
OWNED_FLAGS = {
    "host": "servers always bind 127.0.0.1",
    "port": "autotune picks a free port for every launch",
    "model": "write it as server.model",
    "speculative_config": "write it as server.speculative",
    "api_key": "autotune talks to its own server only",
    "uds": "autotune measures over TCP on 127.0.0.1",
}
# Keys of the draft's configuration that cannot be searched under these names.
_NOT_OF_DRAFT = {
    f"{DRAFT}{N}": f"write it as {N}",
    f"{DRAFT}method": "write several methods as server.arms",
    f"{DRAFT}model": "write several drafts as server.arms",
    ARM: "server.arms has the arms",
}
# Limits as in `keys`.
MOST_AHEAD = 64
MOST_POINTS = 10**6  # of a space that is countable


def flag_name(name: str) -> str:
    """Return a flag as vLLM names its argument: ``--max-num-seqs`` becomes ``max_num_seqs``."""
    return name.removeprefix("--").replace("-", "_")


def is_flag(name: str) -> bool:
    """Return whether a text is the name of a flag, such as ``compilation_config.mode``.

    A dotted name may end with ``+``, by which vLLM adds to a list.
    """
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]*(\.[A-Za-z0-9_.]+\+?)?", name) is not None


def _argv(value: object) -> object:
    """Return a command as words."""
    if isinstance(value, str):
        return tuple(shlex.split(value))
    return value


class ServerSpec(Model):
    """What is launched for every trial."""

    command: Result[Annotated[tuple[str, ...], BeforeValidator(_argv)] | None] = Field(
        default=None,
        description="argv in front of the model and the flags: `vllm serve`, `/path/to/python -m "
        "vllm.entrypoints.openai.api_server`, or any other, such as a container; without it, the "
        "vLLM of autotune's own environment",
    )
    model: Result[str] = Field(
        description="the target: a folder, a hub name, `demo:target`, or a "
        "shape such as `shape:qwen3-8b:w4a16`"
    )
    flags: Result[dict[str, FlagValue]] = Field(
        default_factory=dict,
        description="vLLM flags that stay fixed; true for a switch, false for its --no- form",
    )
    env: Result[dict[str, str]] = Field(default_factory=dict, description="environment variables")
    speculative: SpeculativeSpec | None = Field(default=None, description="the draft")
    arms: dict[ArmName, ArmSpec] = Field(
        default_factory=dict,
        max_length=MOST_ARMS,
        description="several ways to draft by name, instead of `speculative`; each trial has one",
    )
    launch: Nothing[Literal["warm", "cold"]] = Field(
        default="warm",
        description="warm: servers are forked from a process that has imported vLLM, where that is "
        "possible; cold: each one imports it again from scratch",
    )
    ahead: Nothing[int] = Field(
        default=0,
        ge=0,
        le=MOST_AHEAD,
        description="most servers of the next points that are prelaunched: they start together "
        "with the server of the current point and idle until theirs, on each slot for itself; on a "
        "GPU with `kv-cache-memory-bytes` only",
    )
    health_timeout_s: Nothing[float] = Field(
        default=900, gt=0, le=MOST_SECONDS, description="longest wait for /health"
    )
    stop_timeout_s: Nothing[float] = Field(
        default=20,
        gt=0,
        le=MOST_SECONDS,
        description="wait after SIGTERM before the whole tree is killed",
    )
    # from the study's key `rehearsal`
    _played: Played | None = PrivateAttr(default=None)

    def settings(self, point: Mapping[str, FlagValue]) -> dict[str, FlagValue]:
        """Return every launch setting of a point, fixed and searched.

        Flags have their own names. Keys of the draft begin with ``speculative.``, but for n.

        Args:
            point: Values that are searched, or that a load sweep changes, by name.
        """
        way = self._arm_at(point) or self.speculative
        draft = way.given() if way is not None else {}
        fixed = {k if k == N else f"{DRAFT}{k}": v for k, v in draft.items()}
        found = {**self.flags, **fixed, **self._reaching(point)}
        return found if self._played is None else self._played.applied(found)

    @property
    def played(self) -> Played | None:
        """What of its launches is rehearsed; None: nothing."""
        return self._played

    def playing(self, how: Played | None) -> ServerSpec:
        """Return the server with another rehearsal; None: as the rest of the study says."""
        server = self.model_copy()
        server._played = how
        return server

    def _arm_at(self, point: Mapping[str, FlagValue]) -> ArmSpec | None:
        name = point.get(ARM)
        return self.arms.get(name) if isinstance(name, str) else None

    def _reaching(self, point: Mapping[str, FlagValue]) -> dict[str, FlagValue]:
        """Return the values of a point that its launch has: those of other arms are left out."""
        if not self.arms:
            return dict(point)
        arm = self._arm_at(point)
        own = {f"{DRAFT}{key}" for key in arm.space} if arm is not None else set()
        return {
            k: v for k, v in point.items() if k != ARM and (k in own or not k.startswith(DRAFT))
        }

    @property
    def drafts(self) -> dict[str | None, SpeculativeSpec]:
        """Every way to draft, by the name of its arm; None: the only one; empty: there is none."""
        if self.arms:
            return {name: arm.alone() for name, arm in self.arms.items()}
        return {} if self.speculative is None else {None: self.speculative}

    def draft_at(self, point: Mapping[str, FlagValue]) -> SpeculativeSpec | None:
        """Return the way to draft of a point; None: it has none, or with arms no arm."""
        arm = self._arm_at(point)
        return arm.alone() if arm is not None else self.speculative

    def of_arm(self, name: str) -> ServerSpec:
        """Return the server with an arm as its only way to draft.

        Raises:
            KeyError: there is no such arm.
        """
        return self.model_copy(update={"speculative": self.arms[name].alone(), "arms": {}})

    @model_validator(mode="after")
    def _one_place(self) -> ServerSpec:
        if self.arms and self.speculative is not None:
            raise ValueError("speculative: write it as one of the arms; server.arms has all drafts")
        return self

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
            if not is_flag(name):
                raise ValueError(f"{key!r} is no name of a flag; write it in full, such as seed")
            if name in OWNED_FLAGS:
                raise ValueError(f"{key} is not yours to set: {OWNED_FLAGS[name]}")
            if name.startswith(DRAFT):
                raise ValueError(f"{key} goes into server.speculative")
            if name in out:
                raise ValueError(f"{key} is given twice")
            if v is None and "." not in name:
                raise ValueError(f"{key} has no value; give one, or leave the key out")
            out[name] = v
        return out


class MeasureSpec(Model):
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
        le=MOST_REQUESTS,
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
    per_request_acceptance: Nothing[bool] = Field(
        default=True,
        description="ask vLLM, from 0.29 on, how many drafts each request accepted, and keep that",
    )


class SearchSpec(Model):
    """How the next point is chosen."""

    method: Schedule[Literal["gp", "grid", "random"]] = Field(
        default="gp",
        description="Gaussian process that knows speculative decoding, every point in turn, or "
        "blind draws",
    )
    allow_throttled: Schedule[bool] = Field(
        default=False,
        description="launch also points at which vLLM runs fewer requests at once than the smaller "
        "of concurrency and `max-num-seqs`; they are marked and never win",
    )


class BudgetSpec(Model):
    """When to stop; the command line's options of the same name win."""

    trials: Schedule[int] = Field(
        default=40, gt=0, le=10**6, description="total number of finished trials"
    )
    confirm: Schedule[int | None] = Field(
        default=None,
        ge=0,
        description="how many of them measure the winners again, next to the baseline, at most "
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
        "expected to improve an objective, or the geometric mean of all, by this much, or by a "
        "tenth of what one launch is off by if that is more; 0: never",
    )
    timeout_minutes: Schedule[float | None] = Field(
        default=None,
        gt=0,
        le=MOST_SECONDS / 60,
        description="no launch begins after this time; without it there is no limit",
    )

    def confirm_of(self, trials: int) -> int:
        """Return how many trials are held back for the confirmation.

        Args:
            trials: Total number of trials.
        """
        if self.confirm is not None:
            return min(self.confirm, trials // 2)
        held = min(8, trials // 3)
        return held if held >= 4 else 0  # A B B A needs four

    def replicates_of(self, searched: int) -> int:
        """Return how many trials launch a point once more, to see how much launches differ.

        Args:
            searched: Number of trials of the search.
        """
        return min(3, searched // 8) if self.replicates is None else self.replicates


class StudySpec(Model):
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
        description="point of the first trial; without a key, n = 0 and vLLM's own default",
    )
    workload: WorkloadSpec = Field(description="the load that is put on it")
    measure: MeasureSpec = Field(
        default_factory=MeasureSpec, description="how long a trial is measured"
    )
    objectives: list[NamedObjective] = Field(
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
    rehearsal: RehearsalSpec | None = Field(
        default=None, description="run without the real weights or the real acceptance"
    )

    @model_validator(mode="before")
    @classmethod
    def _tokenizer(cls, value: Any) -> Any:
        """Count the length of conversations in the target's tokens, without another tokenizer."""
        match value:
            case {"server": {"model": str(model)}, "workload": {"sharegpt": given} as load}:
                given = prompts_file(given)
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
            if not is_flag(name):
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
        if why := why_clash(self.server.arms, self.space):
            raise ValueError(why)
        self._check_fixed()
        self._check_aligned()
        self._check_n()
        if MNBT in self.space and not all(
            type(v) is int for v in self.space[MNBT].values() or [0.5]
        ):
            raise ValueError(f"space.{MNBT}: must be whole numbers; use type: pow2 or int")
        searched = self.to_space()
        for key in self.baseline:
            if key not in searched.params:
                raise ValueError(f"baseline.{key}: is not a parameter of space")
        if why := why_no_baseline(searched, self.baseline):
            raise ValueError(why)
        if (size := searched.size() or 0) > MOST_POINTS:
            raise ValueError(
                f"space: has {size} points, more than {MOST_POINTS}; take fewer or larger steps"
            )
        self._check_load()
        names = [o.name for o in self.objectives]
        if len(set(names)) < len(names):
            raise ValueError("objectives: the same objective is listed twice")
        if self.rehearsal is not None:
            self.server._played = played(self)
        return self

    @property
    def _fixed_of_draft(self) -> Mapping[str, Any]:
        """Keys of the draft that are fixed, except method and model."""
        draft = self.server.speculative
        return {} if draft is None else draft.model_extra or {}

    def _check_fixed(self) -> None:
        """Check that no parameter is also fixed."""
        for name in self.space:
            if name in self.server.flags:
                raise ValueError(
                    f"space.{name}: also fixed in server.flags; keep it in one of the two"
                )
        for name in self.space:
            if name.startswith(DRAFT) and self.server.speculative is None:
                raise ValueError(f"space.{name}: needs server.speculative")
            if name.removeprefix(DRAFT) in self._fixed_of_draft and name.startswith(DRAFT):
                raise ValueError(
                    f"space.{name}: also fixed in server.speculative; keep it in one of the two"
                )

    def _check_n(self) -> None:
        """Check that n is searched or fixed in one place, as whole numbers, with a draft."""
        if N in self.space:
            if N in self._fixed_of_draft:
                raise ValueError(
                    f"space.{N}: also fixed in server.speculative; keep it in one of the two"
                )
            values = self.space[N].values()
            if values is None or not all(type(v) is int and v >= 0 for v in values):
                raise ValueError(f"space.{N}: must be whole numbers from 0 up; use type: int")
            if not self.server.drafts and any(v for v in values):
                raise ValueError(
                    f"space.{N}: needs server.speculative: the `model` of a draft, or "
                    "`method: mtp`, `ngram` or `suffix`"
                )
        elif N in self.server.flags:
            raise ValueError(f"server.flags.{N}: is no flag of vLLM; search it in space")

    def _check_load(self) -> None:
        """Check that there are enough prompts, and none that the prefix cache has."""
        load = self.workload
        if load.repeat and self.server.flags.get("enable_prefix_caching") is not False:
            raise ValueError(
                "workload.repeat: a prompt that comes again is read from the prefix cache; set "
                "enable-prefix-caching: false in server.flags"
            )
        measured = max(load.num_prompts, load.confirm_prompts or 0)
        if load.random and (why := load.random.why_not(measured + load.most_warmup)):
            raise ValueError(f"workload.random: {why}")

    def _check_aligned(self) -> None:
        """Check that aligned CUDA graphs have a max_num_seqs, and that no flag sets their sizes."""
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

    def with_method(self, method: str | None, arm: str | None = None) -> StudySpec:
        """Return the study with another method of a draft, if it has that draft.

        Args:
            method: vLLM's name of the method; None: vLLM chooses.
            arm: Name of the arm; None: the only draft of a study without arms.
        """
        server, change = self.server, {"method": method}
        if arm is not None:
            arms = {**server.arms, arm: server.arms[arm].model_copy(update=change)}
            server = server.model_copy(update={"arms": arms})
        elif server.speculative is not None:
            draft = server.speculative.model_copy(update=change)
            server = server.model_copy(update={"speculative": draft})
        return self.model_copy(update={"server": server})

    @property
    def rehearsal_label(self) -> str:
        """What is real of a rehearsal, or of a study that plays by its own flags; empty: all."""
        return unsaid_label(self) if self.server.played is None else self.server.played.label

    def rehearsed_with(self, acceptance: AcceptanceSpec) -> StudySpec:
        """Return the rehearsal with another acceptance.

        Raises:
            ValueError: it does not go together with the study, or the study is no rehearsal.
        """
        if self.rehearsal is None:
            raise ValueError("the study is no rehearsal")
        how = self.rehearsal.model_copy(update={"acceptance": acceptance})
        spec = self.model_copy(update={"rehearsal": how})
        return spec.model_copy(update={"server": self.server.playing(played(spec))})

    def without_rehearsal(self) -> StudySpec:
        """Return the study as it would be run with the real weights."""
        server = self.server.playing(None)
        return self.model_copy(update={"rehearsal": None, "server": server})

    def to_space(self) -> Space:
        """Return the searched parameters, with the arm where there are several."""
        return space_of(self.space, self.server.speculative, self.server.arms)

    def settings(self, point: Mapping[str, FlagValue]) -> dict[str, FlagValue]:
        """Return every launch setting of a point: :meth:`ServerSpec.settings`."""
        return self.server.settings(point)

    def shown(self, left_out: Mapping[str, Any]) -> dict[str, Any]:
        """Return the study as plain data, with its secrets masked.

        Args:
            left_out: Keys to leave out, as pydantic's ``exclude``.
        """
        body = self.model_dump(mode="json", exclude=dict(left_out))
        body["server"]["env"] = _masked_env(self.server.env)
        return body


def _masked_env(env: Mapping[str, str]) -> dict[str, str]:
    return {k: MASK if is_secret(k, v) else v for k, v in env.items()}
