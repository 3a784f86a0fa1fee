"""A study that was checked against the machine, before anything is launched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from autotune.bench.objectives import study_objectives
from autotune.bench.workload import Workload, build_workload
from autotune.engine.active_requests import Asked, asked_at_once
from autotune.engine.cuda_graphs import aligned_sizes, coverage, graphs, most_tokens
from autotune.engine.draft_method import with_method
from autotune.engine.feasibility import known_for
from autotune.engine.flags import check_flags
from autotune.engine.memory_fit import (
    DEFAULT_UTILIZATION,
    unchecked_tokenizer,
    why_no_weights,
    why_too_large,
)
from autotune.engine.probe import VllmInfo, probe
from autotune.engine.rehearsal import why_not_rehearsed
from autotune.engine.rule import Known, minor_of
from autotune.engine.rules import why_infeasible
from autotune.errors import UserError
from autotune.serving.machine import memory_size
from autotune.serving.resolve import model_resolver
from autotune.study import sample_size
from autotune.study.files import LoadedStudy
from autotune.study.schema import StudySpec
from autotune.study.space import (
    ALIGNED,
    ARM,
    MNBT,
    FloatParam,
    N,
    Point,
    Space,
    Value,
    as_int,
    canonical,
    describe,
)
from autotune.study.weights import draft_role, weights_id
from autotune.tuning.progress import Progress
from autotune.tuning.rehearsing import rehearsed
from objectives import Objective

# vLLM's default of max_num_batched_tokens for `vllm serve` on a CPU and on a GPU below 70 GiB.
DEFAULT_MNBT = 2048


@dataclass(frozen=True)
class Prepared:
    """A study that was checked against the machine: nothing was launched yet.

    Attributes:
        loaded: The study.
        info: Its vLLM.
        workload: Requests of a trial.
        confirmation: Requests of a launch of the confirmation.
        objectives: With the study's directions.
        resolve: Turns a model reference into a path or a name for vLLM.
        load: Concurrency that the rules go by; None: the study's own.
    """

    loaded: LoadedStudy
    info: VllmInfo
    workload: Workload
    confirmation: Workload
    objectives: tuple[Objective, ...]
    resolve: Callable[[str], str]
    load: int | None = None

    @property
    def spec(self) -> StudySpec:
        """The study file."""
        return self.loaded.spec

    @cached_property
    def known(self) -> Known:
        """What the machine and the target tell the rules."""
        known = known_for(self.loaded, self.info)
        return known if self.load is None else replace(known, load=self.load)

    def infeasible(self, point: Point) -> str | None:
        """Return why this vLLM version cannot launch the point, or None."""
        settings = self.spec.settings(point)
        if why := why_not_rehearsed(self.spec.server, settings):
            return why
        return why_infeasible(settings, self.info.version, self.known)

    def asked(self, point: Point, load: int | None = None) -> Asked | None:
        """Return how many requests a launch of the point should run at once.

        Args:
            point: What is launched.
            load: Concurrency of a closed loop; None: the study's own load.
        """
        known = self.known if load is None else replace(self.known, load=load)
        return asked_at_once(self.spec.settings(point), known)

    def weights(self) -> dict[str, str]:
        """Return hashes of the weights that are on this machine, by what they are for."""
        return weights_here(self.spec, self.resolve)


def weights_here(spec: StudySpec, resolve: Callable[[str], str]) -> dict[str, str]:
    """Return hashes of the weights of a study that are on this machine, by what they are for.

    These are ``target`` and ``draft``, or with arms ``draft MODEL`` for each model.

    Args:
        spec: The study.
        resolve: Turns a model reference into a path or a name for vLLM.

    Raises:
        UserError: a model is missing here.
    """
    named = {"target": spec.server.model}
    for arm, draft in spec.server.drafts.items():
        if draft.model is not None:
            named[draft_role(arm, draft.model)] = draft.model
    places = {role: Path(resolve(ref)) for role, ref in named.items()}
    # a name of a hub is no path
    found = {
        role: weights_id(p, random=_are_random(spec, role))
        for role, p in places.items()
        if p.is_absolute()
    }
    return {role: x for role, x in found.items() if x is not None}


def _are_random(spec: StudySpec, role: str) -> bool:
    """Return whether a rehearsal has random weights in a role."""
    how = spec.rehearsal
    return how is not None and how.dummy("target" if role == "target" else "draft")


def baseline_point(spec: StudySpec) -> dict[str, Value]:
    """Return the first trial's point: n = 0, vLLM's default MNBT, else the middle of each axis."""
    space = spec.to_space()
    given = {k.replace("-", "_"): v for k, v in spec.baseline.items()}
    point: dict[str, Value] = {}
    for name, p in space.params.items():
        values = p.values()
        if name in given:
            point[name] = given[name]
        elif name == N:
            point[name] = space.clip(N, 0)
        elif name == MNBT:
            point[name] = space.clip(MNBT, DEFAULT_MNBT)
        elif isinstance(p, FloatParam):
            point[name] = (p.low + p.high) / 2
        elif name == ARM:
            point[name] = space.arms[0]
        elif values is not None:
            point[name] = values[len(values) // 2]
    return canonical(space, point) if space.ways else point


def prepare(loaded: LoadedStudy, progress: Progress, *, here: bool = True) -> Prepared:
    """Check everything that can be checked before anything is launched.

    Args:
        loaded: The study.
        progress: Told of downloads, and of what could not be checked.
        here: Whether servers start on this host, which the model has to fit into then.

    Raises:
        UserError: the user's mistake, as one line with file and key.
    """
    spec = loaded.spec
    sample_size.check(loaded)
    objectives = study_objectives(loaded)
    load = spec.workload
    workload = build_workload(load, loaded.base)
    again = load.model_copy(update={"num_prompts": load.confirm_prompts or load.num_prompts})
    confirmation = build_workload(again, loaded.base)
    space = spec.to_space()
    try:
        space.encode(baseline_point(spec))
    except ValueError as e:
        raise UserError(f"{loaded.path}: baseline: {e}") from e
    if spec.search.method == "grid" and space.size() is None:
        raise UserError(
            f"{loaded.path}: search.method: a grid needs parameters with a list of values; "
            "give `float` parameters as `choice`"
        )

    with progress.waiting("checking vLLM"):
        try:
            info = probe(spec.server)
        except UserError as e:
            raise UserError(f"{loaded.path}: {e}") from e
    resolve = model_resolver(loaded, info, progress.download)
    models = {"server.model": spec.server.model}
    for arm, draft in spec.server.drafts.items():
        if draft.model is not None:
            place = "server.speculative" if arm is None else f"server.arms.{arm}"
            models[f"{place}.model"] = draft.model
    for key, model in models.items():
        try:
            resolve(model)
        except UserError as e:
            raise UserError(f"{loaded.path}: {key}: {e}") from e
    check_flags(loaded, info)
    loaded = rehearsed(with_method(loaded), info)
    why = why_no_weights(loaded)
    if why := why or (why_too_large(loaded, info, memory_size()) if here else None):
        raise UserError(f"{loaded.path}: {why}")
    if (note := unchecked_tokenizer(loaded)) is not None:
        progress.message(note)
    prepared = Prepared(loaded, info, workload, confirmation, objectives, resolve)
    check_ahead(prepared)
    _check_some_feasible(prepared, space)
    return prepared


def check_ahead(prepared: Prepared) -> None:
    """Refuse prelaunched servers that vLLM would not start together on a GPU.

    A server that profiles the GPU's memory takes for its own what others take meanwhile, and each
    wants its ``gpu_memory_utilization`` free when it starts, also with a KV cache of fixed size
    (vllm/v1/worker/utils.py:request_memory, gpu_worker.py:determine_available_memory).
    Each slot has GPUs of its own, so the same holds there.

    Raises:
        UserError: they would not start.
    """
    spec, path = prepared.spec, prepared.loaded.path
    ahead = spec.server.ahead
    if not ahead or prepared.info.device != "cuda":
        return
    settings = spec.settings(baseline_point(spec))
    if "kv_cache_memory_bytes" not in settings:
        raise UserError(
            f"{path}: server.ahead: servers that start together disturb each other's memory "
            "profiling. Fix the KV cache with kv-cache-memory-bytes in server.flags"
        )
    share = settings.get("gpu_memory_utilization", DEFAULT_UTILIZATION)
    if isinstance(share, int | float) and share * (ahead + 1) > 1:
        raise UserError(
            f"{path}: server.ahead: vLLM wants {share:g} of the GPU's memory free at every start; "
            f"set gpu-memory-utilization in server.flags to at most {100 // (ahead + 1) / 100:g} "
            "(kv-cache-memory-bytes decides what is used)"
        )


def _check_some_feasible(prepared: Prepared, space: Space) -> None:
    """Refuse a study of which no point can launch."""
    dead = never_launched(space, prepared.infeasible)
    if dead and len(dead) == len(space.arms):
        arm, first = next(iter(dead.items()))
        raise UserError(f"{prepared.loaded.path}: server.arms: no arm can launch; {arm}: {first}")
    points = space.points()
    if points is None:
        return
    reason: str | None = None
    for point in points:
        why = prepared.infeasible(point)
        if why is None:
            return
        reason = reason or why
    axes = "; ".join(f"{name}: {describe(p)}" for name, p in space.params.items())
    raise UserError(f"{prepared.loaded.path}: space: no point of it can launch ({axes}): {reason}")


def never_launched(space: Space, infeasible: Callable[[Point], str | None]) -> dict[str, str]:
    """Return the arms of which no point can launch, with a reason for each.

    Args:
        space: Space of the study.
        infeasible: Returns why a point cannot launch, or None.
    """
    out: dict[str, str] = {}
    for arm, part in zip(space.arms, space.parts()[1:], strict=False):
        reason: str | None = None
        for point in part.points() or ():
            why = infeasible(point)
            if why is None:
                break
            reason = reason or why
        else:
            if reason is not None:
                out[arm] = reason
    return out


def graph_misfit(prepared: Prepared) -> Callable[[Point], float] | None:
    """Return how badly the CUDA graphs of a point fit the study's batches; None: there are none.

    The share of the batch sizes that replay no FULL graph, plus the mean share of padding.
    """
    spec, info = prepared.spec, prepared.info
    if info.device != "cuda" or info.version is None or minor_of(info.version) is None:
        return None
    version, load = info.version, spec.workload.max_concurrency
    most = most_tokens(version, info.gpus)

    def misfit(point: Point) -> float:
        settings = spec.settings(point)
        seqs, mnbt = as_int(settings.get("max_num_seqs")), as_int(settings.get(MNBT))
        if settings.get("enforce_eager") is True or seqs is None or mnbt is None:
            return 0.0
        n = as_int(settings.get(N)) or 0
        aligned = settings.get(ALIGNED) is True
        given = aligned_sizes(n, seqs, mnbt, most=most) if aligned else None
        found = graphs(n, seqs, mnbt, version, given, most=most)
        fit = coverage(found, min(load or seqs, seqs))
        return 1 - fit.full + fit.padding

    return misfit
