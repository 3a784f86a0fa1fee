"""What a study must not set, because autotune sets it or because measuring would be impossible.

A draft of which no launch would have a token is refused here, too: its figures would be those of
n = 0, and nothing would say so.

A server that drafts in the baseline, or whose batch is not the one that is searched, makes every
figure of a study wrong. So each place where a study can write a flag is checked with the same
words: ``server.flags``, ``space`` and ``server.command``. A study that a database holds is read
without, because it was run.
"""

from __future__ import annotations

from collections.abc import Iterator

from autotune.study.arms import largest_n
from autotune.study.options import Clash, merged
from autotune.study.rehearsal import LOAD_FORMAT
from autotune.study.schema import OWNED_FLAGS, StudySpec
from autotune.study.secrets import argument_secret, command_secret, without_passwords
from autotune.study.space import ARM, DRAFT, MNBT, ChoiceParam, N
from autotune.study.speculative import ADAPTIVE, REJECTION, SCHEDULE
from autotune.study.unsaid import Unsaid, unsaid
from autotune.study.words import argument_of, is_meant, own_words
from autotune.study.yaml import shown

HTTP = "autotune measures over plain HTTP on 127.0.0.1"
# Flags of vLLM that make measuring impossible, or would store a secret.
UNUSABLE = {
    "hf_token": "flags are stored and shown; set HF_TOKEN in your environment",
    "enable_ssl_refresh": HTTP,
    "root_path": "autotune asks the server at its root",
    "config": "a file of flags could undo what autotune sets; write them in server.flags",
    "headless": "a server without an API cannot be measured",
    "grpc": "autotune measures the OpenAI API",
    "help": "vLLM prints its help and serves nothing",
}
ACCEPTANCE = "per_request_spec_decode_metrics"  # vLLM refuses it without a draft
_ONE_LEVEL = "write one level in server.flags, or none and measure.per_request_acceptance"
_DRAFTS = "write it as server.speculative"
# Flags that a wrapper or a container's program may have under the same name.
_COMMON = frozenset({"host", "port", "config", "headless", "grpc", "uds"})


def why_not_yours(name: str) -> str | None:
    """Return why a study must not set a flag, and what to write; None: it may.

    Args:
        name: The flag with underscores, perhaps with a key after a dot.
    """
    root = name.partition(".")[0]
    if root.startswith(("spec_", "speculative")) and root != "speculative":
        return _DRAFTS
    if root.startswith("ssl_"):
        return HTTP
    return OWNED_FLAGS.get(root) or UNUSABLE.get(root)


def why_refused(spec: StudySpec) -> str | None:
    """Return what a study sets that is not the user's to set, key first; None: nothing."""
    return next(_problems(spec), None)


def _problems(spec: StudySpec) -> Iterator[str]:
    for name, value in spec.server.flags.items():
        secret = name != "hf_token" and argument_secret(name, value)
        # the launch says what is wrong with a secret: `autotune.engine.flags`
        if not secret and (why := why_not_yours(name)):
            yield f"server.flags.{name}: is not yours to set: {why}"
    for name in spec.space:
        if not name.startswith(DRAFT) and (why := why_not_yours(name)):
            yield f"space.{name}: cannot be searched: {why}"
        if name == ACCEPTANCE:
            yield f"space.{name}: cannot be searched: no launch at n = 0 has it; {_ONE_LEVEL}"
    yield from _of_wrong_type(spec)
    yield from _never_drafting(spec)
    yield from _in_command(spec)
    yield from _given_twice(spec)
    yield from _next_to_rehearsal(spec)


def _of_wrong_type(spec: StudySpec) -> Iterator[str]:
    """Yield keys of a draft that vLLM converts or refuses, and that autotune reads as they are."""
    places: dict[str, object] = {}
    for arm, draft in spec.server.drafts.items():
        place = "server.speculative" if arm is None else f"server.arms.{arm}"
        places |= {f"{place}.{k}": v for k, v in draft.given().items()}
    searched = {f"space.{k}": p for k, p in spec.space.items() if k.startswith(DRAFT)}
    for arm, own in spec.server.arms.items():
        searched |= {f"server.arms.{arm}.space.{k}": p for k, p in own.space.items()}
    for key, value in places.items():
        if value is not None and (why := _why_wrong(key, value)):
            yield f"{key}: {why}"
    for key, param in searched.items():
        for value in param.choices if isinstance(param, ChoiceParam) else (param.low,):
            if why := _why_wrong(key, value):
                yield f"{key}: {why}"


def _why_wrong(key: str, value: object) -> str | None:
    name = key.rpartition(".")[2]
    if name == ADAPTIVE and not isinstance(value, bool):
        return f"must be true or false, not {shown(value)}"
    if name == REJECTION and not isinstance(value, str):
        return f"must be a word such as standard, not {shown(value)}"
    return None


def _never_drafting(spec: StudySpec) -> Iterator[str]:
    """Yield what a draft lacks of which no launch would have a token; arms are checked as read.

    vLLM has an n of its own for some methods: the layers of a checkpoint with MTP, the block of a
    DSpark draft, the tree of suffixes (``vllm/config/speculative.py``, 0.32.0: 1480-1508, 1602).
    autotune never leaves it to vLLM, because a launch without n is one without a draft.
    """
    draft = spec.server.speculative
    if draft is None:
        return
    given, schedule = draft.given(), draft.given().get(SCHEDULE)
    if N in spec.space:
        place, values = f"space.{N}", spec.space[N].values() or ()
    else:
        place, values = f"server.speculative.{N}", (given[N],) if N in given else ()
    if any(values) or (values and schedule is None):  # with n = 0 alone the study says so
        return
    try:
        largest = 0 if schedule is None else largest_n(schedule)
    except ValueError:  # the launch says what is wrong with it: `autotune.engine.flags`
        largest = 0
    such = f", such as {largest}, the largest n of the schedule" if largest else ""
    yield (
        f"{place}: is {'0' if values else 'missing'}, so no launch would draft; search "
        f"space.{N}, or give {'it' if not values else 'one from 1 up'} in "
        f"server.speculative{such}; without drafts, leave server.speculative out"
    )


def _next_to_rehearsal(spec: StudySpec) -> Iterator[str]:
    """Yield what a rehearsal plays by other settings, so that its label would not say so.

    What both say is refused with the study itself: :mod:`autotune.study.rehearsal`.
    """
    keys = {
        Unsaid.WEIGHTS: "rehearsal.weights",
        Unsaid.DRAFT_WEIGHTS: "rehearsal.weights.draft",
        Unsaid.ROUTING: "rehearsal.routing",
    }
    for what in unsaid(spec) if spec.rehearsal is not None else ():
        if what in keys:
            yield f"{keys[what]}: the study sets {what} itself; write it here, so that all say so"


def _given_twice(spec: StudySpec) -> Iterator[str]:
    """Yield keys of one option that the study says in two places."""
    searched = dict.fromkeys(spec.to_space().params)
    for arm in spec.server.arms or (None,):
        try:
            merged({**spec.server.settings({**searched, **({} if arm is None else {ARM: arm})})})
        except Clash as e:
            first, second = (_place(spec, name, arm) for name in (e.first, e.second))
            yield f"{second}: also given in {first}; keep it in one of the two"
            return


def _place(spec: StudySpec, name: str, arm: str | None) -> str:
    """Return the full key of a setting, for launches of an arm."""
    if name in spec.space:
        return f"space.{name}"
    if not name.startswith(DRAFT):
        return f"server.flags.{name}"
    if arm is None:
        return f"server.{name}"
    key = name.removeprefix(DRAFT)
    return f"server.arms.{arm}.{f'space.{key}' if key in spec.server.arms[arm].space else key}"


def _in_command(spec: StudySpec) -> Iterator[str]:
    """Yield the words of ``server.command`` that set what the study sets elsewhere."""
    if spec.server.command is None or command_secret(spec.server.command):
        return
    words, sure = own_words(spec.server.command)
    if sure and words and not words[0].startswith("-"):
        model = without_passwords(words[0])
        yield f"server.command: names the model {model:.60}; write it as server.model"
    for word in words:
        name = argument_of(word, short=sure)
        why = None if name is None else _why_not_in_command(spec, name, sure=sure)
        if why is not None:
            shown = word.partition("=")[0]  # the value may be a secret
            yield f"server.command: {shown:.60} must not be in it: {why}"


def _why_not_in_command(spec: StudySpec, name: str, *, sure: bool) -> str | None:
    """Return what to do instead of a flag in the command; None: it may be there.

    Args:
        spec: The study.
        name: The flag.
        sure: Whether vLLM reads the word, and not a program in front of it.
    """
    for other in (*OWNED_FLAGS, MNBT):
        if is_meant(name, other) and (sure or other not in _COMMON):
            return OWNED_FLAGS.get(other) or _move(spec, other)
    if sure or name not in _COMMON:
        if why := why_not_yours(name):
            return why
        if is_meant(name, LOAD_FORMAT) and spec.rehearsal is not None and spec.rehearsal.weights:
            return "rehearsal.weights sets it; leave it out of the command"
        if name in (*spec.space, *spec.server.flags, N):
            return _move(spec, name)
    return None


def _move(spec: StudySpec, name: str) -> str:
    if name == N:
        return _DRAFTS
    if name in spec.space:
        return f"it is searched in space.{name}; leave it out of the command"
    if name in spec.server.flags:
        return f"server.flags.{name} sets it; leave it out of the command"
    return f"write it as {name.replace('_', '-')} in server.flags, or search it in space"
