"""Compare two studies by what their keys affect; all comparisons derive from one table.

Each key of a study file says what it affects (:class:`autotune.study.keys.Affects`);
:data:`TABLE` has all of them. From it derive the fingerprint of a study, what stops a resume, what
``--reuse`` refuses, what ``compare`` shows as a difference, which load sweep is continued, and the
text of each difference.

- A key that affects the **result** stops a resume and ``--reuse``, and is a difference to
  ``compare``.
- A key that affects the **schedule** may change at any time: a resumed study continues with
  the new value.
- A key that affects **nothing** may change as well.

Four kinds of keys need more than a comparison of their values:

- Files count by their content, not by their path.
- ``warmup_prompts`` and ``latency_from`` count by their effective value, because other keys decide
  their default.
- Objectives are compared by name.
- ``space`` and ``baseline`` say which points a study has. Within one study they must not change.
  Two studies are compared point by point, so there they are no difference.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from autotune.study.files import LoadedStudy
from autotune.study.keys import Affects, key_name
from autotune.study.rehearsal import BY_WEIGHTS
from autotune.study.schema import StudySpec

# Keys that name a file; see the module docstring.
FILES = frozenset(
    {"workload.prompts", "workload.sharegpt.file", "workload.replay.file", "objectives.file"}
)
# Keys that say which points a study has; see the module docstring.
POINTS = frozenset({"space", "baseline"})
# Effective values of the keys that count by them.
_AMOUNTS: Mapping[str, Callable[[StudySpec], object]] = {
    "workload.warmup_prompts": lambda spec: spec.workload.most_warmup,
    "workload.latency_from": lambda spec: spec.workload.latency_origin,
}
_OBJECTIVES = "objectives"
# Values that a key had where a study left it out, up to 0.2.0; fingerprints leave them out, too.
_FORMER_DEFAULTS: Mapping[str, object] = {"server.speculative.method": "dflash"}


def affects(field: FieldInfo) -> Affects | None:
    """Return what a key affects; None for a section, whose keys say it.

    Raises:
        TypeError: the key says more than one effect.
    """
    found = [x for x in field.metadata if isinstance(x, Affects)]
    if len(found) > 1:
        raise TypeError(f"a key has the effects {', '.join(found)}")
    return found[0] if found else None


def section(field: FieldInfo) -> type[BaseModel] | None:
    """Return the model of a key that is a section, or a list of sections; None for other keys."""
    models = [x for x in _members(field.annotation) if isinstance(x, type)]
    return next((x for x in models if issubclass(x, BaseModel)), None)


def _members(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) in (Annotated, Union, UnionType, list, dict):
        for arg in get_args(annotation):
            yield from _members(arg)
    else:
        yield annotation


def table(model: type[BaseModel], prefix: str = "") -> dict[str, Affects]:
    """Return what each key of a model affects, by its dotted name without a list's indices.

    Raises:
        TypeError: a key does not say what it affects.
    """
    out: dict[str, Affects] = {}
    for key, field in model.model_fields.items():
        inner, effect = section(field), affects(field)
        if effect is not None:
            out[prefix + key_name(key)] = effect
        elif inner is not None:
            out |= table(inner, f"{prefix}{key}.")
        else:
            raise TypeError(f"{model.__name__}.{key} does not say what it affects")
    if model.model_config.get("extra") == "allow":
        out[f"{prefix}*"] = model.other_keys  # type: ignore[attr-defined]
    return out


TABLE: Mapping[str, Affects] = table(StudySpec)


@dataclass(frozen=True)
class Difference:
    """One key that two studies give different values.

    Attributes:
        key: Dotted, such as ``server.flags.max_num_seqs``.
        there: Value of the first study; None: not set.
        here: Value of the second study; None: not set.
    """

    key: str
    there: object
    here: object

    def values(self, there: str, here: str) -> str:
        """Return both values in words, such as ``(2 then, not set now)``.

        Args:
            there: Word after the first study's value.
            here: Word after the second study's value.
        """
        first, second = (setting_text(x)[:200] for x in (self.there, self.here))
        return f"({first} {there}, {second} {here})"


def setting_text(value: object) -> str:
    """Return a value of a study file in words; a text that reads like a number is quoted.

    >>> setting_text(2), setting_text("2"), setting_text("auto"), setting_text(None)
    ('2', '"2"', 'auto', 'not set')
    """
    if value is None:
        return "not set"
    if isinstance(value, str) and not _is_number(value):
        return value
    return json.dumps(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class _Leaf(NamedTuple):
    """One value of a study: its dotted key, its key in the table, the value, and the default."""

    key: str
    entry: str
    value: object
    default: object


def differences(
    old: StudySpec, new: StudySpec, effect: Affects = Affects.RESULT
) -> list[Difference]:
    """Return the keys with different values, in the order of the study file.

    Args:
        old: The first study.
        new: The second study.
        effect: Only keys that affect this.
    """
    a, b = _values(old, effect), _values(new, effect)
    entries = {key: leaf.entry for key, leaf in {**a, **b}.items()}
    order = list(TABLE)
    names = {o.name for o in old.objectives} & {o.name for o in new.objectives}
    shared = tuple(f"{_OBJECTIVES}.{name}." for name in names)
    out = []
    for key, entry in sorted(entries.items(), key=lambda x: order.index(x[1])):
        there, here = (x[key].value if key in x else None for x in (a, b))
        if entry in FILES and there is not None and here is not None:
            continue  # compared by their content
        if entry.startswith(_OBJECTIVES) and key != _OBJECTIVES and not key.startswith(shared):
            continue  # reported as an objective that only one of them has
        if _plain(there) == _plain(here):
            continue
        if (amount := _AMOUNTS.get(entry)) is not None:
            there, here = amount(old), amount(new)
        if there != here or amount is None:
            out.append(Difference(key, there, here))
    return out


def _plain(value: object) -> str:
    """Return a text that is equal for values that are equal to vLLM: 1 and true differ."""
    return json.dumps(value, sort_keys=True)


def _values(spec: StudySpec, effect: Affects) -> dict[str, _Leaf]:
    """Return the values that are set and have an effect, by key."""
    return {x.key: x for x in _leaves(spec) if TABLE[x.entry] is effect and x.value is not None}


def _leaves(spec: StudySpec) -> Iterator[_Leaf]:
    """Return every value of a study, with secrets masked."""
    body = spec.shown({})
    if spec.server.command is not None:
        body["server"]["command"] = shlex.join(spec.server.command)
    names = [o.name for o in spec.objectives]
    body[_OBJECTIVES] = dict(zip(names, body[_OBJECTIVES], strict=True))
    for leaf in _of_model(StudySpec, body, "", ""):
        if leaf.entry == f"{_OBJECTIVES}.name":  # one value for the list as a whole
            continue
        yield leaf
    yield _Leaf(_OBJECTIVES, f"{_OBJECTIVES}.name", ", ".join(names), None)


def _of_model(
    model: type[BaseModel], body: Mapping[str, Any], key: str, entry: str
) -> Iterator[_Leaf]:
    for name, field in model.model_fields.items():
        value, own = body.get(name), key_name(name)
        here, there = f"{key}{own}", f"{entry}{own}"
        inner = section(field)
        if affects(field) is not None or inner is None:
            default = None if field.is_required() else _default(field)
            yield from _flat(_Leaf(here, there, value, default))
        elif get_origin(field.annotation) in (list, dict):
            for item, one in (value or {}).items():
                yield from _of_model(inner, one, f"{here}.{item}.", f"{there}.")
        else:
            yield from _of_model(inner, value or {}, f"{here}.", f"{there}.")
    for name in body.keys() - model.model_fields.keys():
        yield from _flat(_Leaf(f"{key}{name}", f"{entry}*", body[name], None))


def _default(field: FieldInfo) -> object:
    return field.get_default(call_default_factory=True, validated_data={})


def _flat(leaf: _Leaf) -> Iterator[_Leaf]:
    """Return the values of a mapping one by one; an empty one at the top has none."""
    if isinstance(leaf.value, Mapping) and (leaf.value or leaf.key == leaf.entry):
        for key, value in leaf.value.items():
            yield from _flat(_Leaf(f"{leaf.key}.{key}", leaf.entry, value, None))
    else:
        yield leaf


# -- files and fingerprints ------------------------------------------------------------------------


def contents(spec: StudySpec, base: Path) -> dict[str, str]:
    """Return the hash of each file that a study names, by key; an objective's by its name.

    Args:
        spec: The study.
        base: Folder that its relative paths start from.

    Raises:
        OSError: a file cannot be read.
    """
    return {key: digest(base / file) for key, file in files_of(spec).items()}


def files_of(spec: StudySpec) -> dict[str, Path]:
    """Return the files that a study names, by key; an objective's by its name."""
    out = {f"{_OBJECTIVES}.{o.name}.file": o.file for o in spec.objectives if o.file is not None}
    if spec.workload.source is not None:
        key, file = spec.workload.source
        out[f"workload.{key}"] = file
    return out


def digest(file: Path) -> str:
    """Return the hash of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def fingerprint(loaded: LoadedStudy) -> str:
    """Return a hash of what decides a trial's numbers, the content of files included.

    Raises:
        OSError: a file cannot be read.
    """
    return fingerprint_with(loaded.spec, contents(loaded.spec, loaded.base))


def fingerprint_with(spec: StudySpec, found: Mapping[str, str]) -> str:
    """Return a study's fingerprint, given the content of its files.

    A value that is the default, or was it, is left out, so that a later version changes no hash.

    Args:
        spec: The study.
        found: Hashes of its files, from :func:`contents`.
    """
    body = {
        x.key: x.value
        for x in _values(spec, Affects.RESULT).values()
        if x.entry not in FILES
        and x.entry not in _AMOUNTS
        and x.value != _FORMER_DEFAULTS.get(x.entry, x.default)
    }
    if (draft := spec.server.speculative) is not None and draft.method is None:
        body["server.speculative.method"] = None  # vLLM chooses: not the same as DFlash
    body |= {key: amount(spec) for key, amount in _AMOUNTS.items()}
    return _hash({**body, **{f"content of {key}": x for key, x in found.items()}})


def _hash(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def fingerprint_of_0_1(spec: StudySpec, found: Mapping[str, str]) -> str:
    """Return the fingerprint as autotune 0.1 computed it, for the databases that hold one.

    It covers keys that affect no result, so a different one says nothing.

    Args:
        spec: The study as the database has it.
        found: Hashes of its files, from :func:`contents`.
    """
    body = spec.shown(
        {
            **{"name": True, "description": True, "budget": True},
            **{"workload": {"hang_timeout_s"}, "server": {"launch", "ahead"}},
            "measure": {"per_request_acceptance"},
            "search": {"allow_throttled"},
        }
    )
    load = body["workload"]
    for key in ("sharegpt", "replay", "repeat", "tools"):  # unknown to the first studies
        if not load[key]:
            del load[key]
    if body["rehearsal"] is None:
        del body["rehearsal"]
    elif body["rehearsal"]["routing"] == BY_WEIGHTS:  # all that the first rehearsals had
        del body["rehearsal"]["routing"]
    if not body["server"]["arms"]:
        del body["server"]["arms"]
    if spec.workload.replay is not None:  # keys of 0.2 with their defaults
        for key in {
            "timestamp_unit",
            "vocab_low",
            "vocab_high",
        } - spec.workload.replay.model_fields_set:
            del load["replay"][key]
    if spec.workload.source is not None:
        key, _ = spec.workload.source
        digest = found[f"workload.{key}"]
        first, _, rest = key.partition(".")
        load[first] = {**load[first], rest: digest} if rest else digest
    for objective, shown in zip(spec.objectives, body[_OBJECTIVES], strict=True):
        if objective.file is not None:
            shown["file"] = found[f"{_OBJECTIVES}.{objective.name}.file"]
    return _hash(body)


def fingerprints(spec: StudySpec, found: Mapping[str, str]) -> frozenset[str]:
    """Return every fingerprint under which a database may hold exactly this study file."""
    return frozenset({fingerprint_with(spec, found), fingerprint_of_0_1(spec, found)})


def in_any_order(spec: StudySpec, directions: Mapping[str, str]) -> StudySpec:
    """Return a study whose objectives are sorted by name and have their directions.

    Args:
        spec: The study.
        directions: Direction of each objective that the study gives none, by name.
    """
    given = (
        o.model_copy(update={"direction": o.direction or directions.get(o.name)})
        for o in spec.objectives
    )
    return spec.model_copy(update={"objectives": sorted(given, key=lambda o: o.name)})


def why_not_same(old: LoadedStudy, kept: str, new: LoadedStudy) -> str | None:
    """Return why a study must not continue with trials of another file; None: it may.

    Args:
        old: The study as the database has it.
        kept: Fingerprint in the database, which covers the content of its files.
        new: The study as it is now; its files are read.
    """
    if (old.spec.rehearsal is None) != (new.spec.rehearsal is None):
        kinds = ("a rehearsal then, real now", "real then, a rehearsal now")
        return f"kind of run ({kinds[old.spec.rehearsal is None]})"
    if found := differences(old.spec, new.spec):
        first = found[0]
        # where a study that left the key out was run with another value than it would be now
        hint = f"; write {first.key}: {first.there} to keep it"
        was = first.there is not None and first.there == _FORMER_DEFAULTS.get(first.key)
        return f"{first.key} {first.values('then', 'now')}{hint if was else ''}"
    then, now = (", ".join(x.spec.server.arms) for x in (old, new))
    if then != now:  # Optuna keeps the arms in the order of the first run
        return f"order of server.arms ({then} then, {now} now; the first order continues it)"
    if kept not in fingerprints(old.spec, contents(new.spec, new.base)):
        return "content of a file that it names"
    return None
