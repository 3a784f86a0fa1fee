"""What a rule is, and a launch as the rules see it; see :mod:`autotune.engine.rules`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property

from packaging.version import Version

from autotune.engine.gpus import Gpu, default_seqs
from autotune.study.space import DRAFT, MNBT, N, as_int

SEQS = "max_num_seqs"
METHOD = f"{DRAFT}method"

Minor = tuple[int, int]


@cache  # a search asks for each of its points
def minor_of(version: str | None) -> Minor | None:
    """Return the minor version of a version such as ``0.32.0``; None: it is unknown.

    It is unknown also for ``dev``, which a vLLM says that was built without its version.
    """
    try:
        v = None if version is None else Version(version)
    except ValueError:
        v = None
    return None if v is None else (v.major, v.minor)


def minor_text(minor: Minor) -> str:
    """Return a minor version as text, such as ``0.32``."""
    return f"{minor[0]}.{minor[1]}"


def first_known(*versions: str | None) -> tuple[str, Minor] | None:
    """Return the first of several versions that is known, with its minor version; None: none is."""
    return next(((v, m) for v in versions if v is not None and (m := minor_of(v))), None)


def within(minor: Minor, first: Minor | None, last: Minor | None) -> bool:
    """Return whether a minor version lies between two, both included; None: no bound."""
    return (first is None or first <= minor) and (last is None or minor <= last)


@dataclass(frozen=True)
class Draft:
    """Facts of a draft's ``config.json`` that the rules read; None: unknown.

    Attributes:
        kind: Its ``model_type``.
        architectures: Its ``architectures``.
        block: Tokens of the block that it was trained for, with the one that it starts from.
        dspark_block: Its ``dspark_block_size``.
        head_tokens: Tokens that a head for multi-token prediction makes at once.
        headless: Whether it has no head for multi-token prediction, in any version.
        one_token: Whether it has one trained step only, so that n must be 1.
        from_anchor: Whether a DSpark draft starts from its anchor token, without a bonus token.
        length: Longest sequence that it was made for, tokens.
        model_max_len: Longest ``max_model_len`` that vLLM derives from its config, tokens.
        mixed: Whether it has sliding and full attention.
        vocabulary: Tokens that it knows.
        drafted_vocabulary: Tokens that it can draft: its ``draft_vocab_size``, or all it knows.
    """

    kind: str | None = None
    architectures: frozenset[str] = frozenset()
    block: int | None = None
    dspark_block: int | None = None
    head_tokens: int | None = None
    headless: bool = False
    one_token: bool = False
    from_anchor: bool | None = None
    length: int | None = None
    model_max_len: int | None = None
    mixed: bool = False
    vocabulary: int | None = None
    drafted_vocabulary: int | None = None


UNREAD_DRAFT = Draft()


@dataclass(frozen=True)
class Known:
    """Facts about machine and target that the rules read; None: unknown, so no rule that needs it.

    Attributes:
        platform: vLLM's name of the device: ``cpu``, ``cuda``, ….
        model_max_len: Longest ``max_model_len`` that vLLM derives from the target's config, tokens;
            the one that a launch has without the flag.
        plain_attention: Whether the target has neither latent (MLA), state-space nor linear layers.
        cpu_fp8: Whether the CPU has AVX-512 or AMX.
        target: ``model_type`` of the target.
        drafts: Facts of each draft, by its name in the study; None: the target's own checkpoint.
        v2: Whether ``VLLM_USE_V2_MODEL_RUNNER`` chooses model runner V2; None: vLLM chooses.
        load: Concurrency of the study's closed loop; None: an open loop, or unknown.
        gpus: GPUs that vLLM sees; empty: none, or unknown.
        dtype: Data type of the target's weights on this device without ``--dtype``, ``float16`` or
            ``bfloat16``.
        allow_throttled: Whether the study launches points at which fewer requests can run at once
            than it asks for.
        draws: Whether the study draws tokens: its temperature is above 0.
    """

    platform: str | None = None
    model_max_len: int | None = None
    plain_attention: bool | None = None
    cpu_fp8: bool | None = None
    target: str | None = None
    drafts: Mapping[str | None, Draft] = field(default_factory=dict)
    v2: bool | None = None
    load: int | None = None
    gpus: tuple[Gpu, ...] = ()
    dtype: str | None = None
    allow_throttled: bool = False
    draws: bool = False


NOTHING = Known()


def method_name(given: str) -> str:
    """Return vLLM's name of a method: ``deepseek_mtp`` and the like are ``mtp``."""
    return "mtp" if given.endswith("_mtp") else given


@dataclass(frozen=True)
class Launch:
    """One launch as the rules see it.

    Attributes:
        settings: Settings as for :func:`why_infeasible`.
        known: Facts about machine and target.
        vllm: Version in words.
        minor: Minor version such as ``(0, 32)``, one that was read; None: unknown.
    """

    settings: Mapping[str, object]
    known: Known
    vllm: str
    minor: Minor | None

    def number(self, name: str) -> int | None:
        """Return a whole number among the settings, or None."""
        return as_int(self.settings.get(name))

    @cached_property  # every rule asks
    def n(self) -> int:
        """Draft tokens per step; 0 without speculation."""
        return self.number(N) or 0

    @cached_property  # every rule asks
    def method(self) -> str | None:
        """Name of the speculative method, as vLLM has it; None: vLLM chooses, so unknown."""
        given = self.settings.get(METHOD)
        return method_name(given) if isinstance(given, str) else None

    @property
    def draft(self) -> Draft:
        """Facts of the draft of this launch."""
        model = self.settings.get(f"{DRAFT}model")
        name = model if isinstance(model, str) else None
        return self.known.drafts.get(name, UNREAD_DRAFT)

    def of_draft(self, key: str) -> object:
        """Return a key of ``--speculative-config``, or None."""
        return self.settings.get(f"{DRAFT}{key}")

    @property
    def replicas(self) -> int:
        """Number of data-parallel replicas, at least 1."""
        return max(self.number("data_parallel_size") or 1, 1)

    def since(self, minor: Minor) -> bool:
        """Return whether its version is known, and is this one or a later one."""
        return self.minor is not None and self.minor >= minor

    @property
    def parallel(self) -> bool:
        """Whether the draft makes all its tokens in one pass, each in a slot of the batch."""
        return self.method in {"dflash", "dspark"} or self.of_draft("parallel_drafting") is True

    def seqs(self) -> tuple[int | None, str]:
        """Return max_num_seqs or a lower bound of it, before MNBT limits a default, and its words.

        vLLM's default is 256 or more on a GPU, see :func:`autotune.engine.gpus.default_seqs`, and
        128 per worker on a CPU (``engine/arg_utils.py:get_batch_defaults``). ``performance_mode:
        throughput`` doubles it.
        """
        given = self.number(SEQS)
        if given is not None:
            return given, f"{SEQS} = {given}"
        if SEQS in self.settings:
            return None, SEQS
        exact = default_seqs(self.known.gpus, self.minor)
        workers = 1
        for name in ("tensor_parallel_size", "pipeline_parallel_size"):
            workers *= max(self.number(name) or 1, 1)
        default = {"cuda": exact or 256, "cpu": 128 * workers}.get(self.known.platform or "")
        if default is None:
            return None, SEQS
        if self.settings.get("performance_mode") == "throughput":
            default *= 2
        more = " or more" if self.known.platform == "cuda" and exact is None else ""
        return default, f"vLLM's own {SEQS} of {default}{more}"

    def most_seqs(self) -> int | None:
        """Return max_num_seqs, or an upper bound of vLLM's own; None: it is unknown."""
        seqs, _ = self.seqs()
        if SEQS in self.settings or seqs is None:
            return seqs
        if self.known.platform == "cuda" and default_seqs(self.known.gpus, self.minor) is None:
            return None
        return min(seqs, self.number(MNBT) or seqs)


@dataclass(frozen=True)
class Rule:
    """A condition under which a launch fails for certain.

    Attributes:
        name: Name in a few words, for tables.
        check: Function that returns why a launch fails, or None.
        source: File and function of vLLM that says so.
        first: First minor version that has it; None: all that were read.
        last: Last minor version that has it; None: all that were read.
        unread: Whether it may speak for a version that nobody read, next to those that were.
        least: Function that returns the smallest MNBT that the rule advises for a launch, in
            tokens, or None where the rule has nothing to say; None: the rule is not about MNBT.
    """

    name: str
    check: Callable[[Launch], str | None]
    source: str
    first: Minor | None = None
    last: Minor | None = None
    unread: bool = True
    least: Callable[[Launch], int | None] | None = None

    def holds(self, minor: Minor) -> bool:
        """Return whether a version that was read has the rule."""
        return within(minor, self.first, self.last)


@dataclass(frozen=True)
class Infeasible:
    """A launch that fails.

    Attributes:
        rule: Rule that it breaks.
        reason: Reason for this launch, in words.
    """

    rule: Rule
    reason: str
