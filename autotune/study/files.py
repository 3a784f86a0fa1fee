"""Find and read study files; nothing in them is run."""

from __future__ import annotations

import difflib
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from autotune.study.checkpoints import config_of
from autotune.study.keys import Model
from autotune.study.messages import problems, refused
from autotune.study.owned import why_refused
from autotune.study.rehearsal import with_mixture
from autotune.study.schema import StudySpec
from autotune.study.secrets import MASK, is_secret, masked, secret_values
from autotune.study.shapes import why_no_shape
from autotune.study.yaml import compose, load, not_plain, shown

MOST_TEXT = 100_000  # characters of a file; reading that many takes two seconds


class LoadedStudy(Model):
    """A study and the file that it came from.

    Attributes:
        spec: The study.
        path: Path of its file.
        text: Text of its file.
    """

    spec: StudySpec
    path: Path
    text: str

    @property
    def base(self) -> Path:
        """Folder that the study's relative paths start from."""
        return self.path.parent


def text_without_secrets(loaded: LoadedStudy) -> str:
    """Return a study's text as it may be stored: the secrets of ``server.env`` as ``***``.

    The rest of the text stays as it is, unless the secrets cannot be cut out of it.
    """
    env = loaded.spec.server.env
    secret = {k for k, v in env.items() if is_secret(k, v)}
    if not secret:
        return loaded.text
    text = loaded.text
    for start, end in sorted(_places(loaded.text, secret), reverse=True):
        old = text[start:end]
        text = text[:start] + f'"{MASK}"' + old[len(old.rstrip()) :] + text[end:]
    # a comment may have a secret too
    text = masked(text, secret_values({k: env[k] for k in secret}))
    raw = load(loaded.text)
    given = raw["server"]["env"]
    raw["server"] = {**raw["server"], "env": {**given, **dict.fromkeys(secret, MASK)}}
    try:
        if load(text) == raw:
            return text
    except (yaml.YAMLError, ValueError):
        pass  # an anchor went with it
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


def _places(text: str, secret: set[str]) -> set[tuple[int, int]]:
    """Return start and end of the values of some variables in a study's text."""
    node: Any = compose(text)
    for key in ("server", "env"):
        node = next((v for k, v in node.value if k.value == key), yaml.MappingNode("", []))
    return {
        (v.start_mark.index, v.end_mark.index)
        for k, v in node.value
        if isinstance(v, yaml.ScalarNode) and k.value in secret
    }


def studies_folder() -> Path:
    """Return the folder of the bundled studies: in a package, or next to it in a checkout."""
    inside = Path(str(files("autotune"))) / "studies"
    return inside if inside.is_dir() else Path(str(files("autotune"))).parent / "studies"


def bundled_studies() -> list[str]:
    """Return the names of the bundled studies."""
    return sorted(p.stem for p in studies_folder().glob("*.yaml"))


def find_study(name: str) -> Path:
    """Return the file of a study, given by path or by the name of a bundled one.

    Raises:
        UserError: there is neither such a file nor such a bundled study.
    """
    path = Path(name)
    try:
        if path.is_file():
            return path
        if path.is_dir():
            raise refused(path, "is a folder; name the study's YAML file")
        if path.exists():
            raise refused(path, "is no regular file; name the study's YAML file")
    except (OSError, ValueError) as e:  # a name too long, a folder without permission, a NUL
        raise refused(path, f"cannot be read: {getattr(e, 'strerror', None) or e}") from e
    bundled = bundled_studies()
    if name in bundled:
        return studies_folder() / f"{name}.yaml"
    if os.sep not in name and path.suffix not in {".yaml", ".yml"}:
        close = difflib.get_close_matches(name[:100], bundled, n=1)
        hint = f"did you mean {close[0]}?" if close else f"bundled are {', '.join(bundled)}"
        raise refused(path, f"no such file, and no bundled study has this name; {hint}")
    raise refused(path, "no such file; `autotune init` writes a study file")


def load_study(name: str) -> LoadedStudy:
    """Read and check a study, given by path or bundled name.

    Raises:
        UserError: the study is refused; the message names file, key and what is allowed.
    """
    return _read(find_study(name))


def load_bundled(name: str) -> LoadedStudy:
    """Read a bundled study, regardless of what else has its name in the current folder.

    Raises:
        UserError: it cannot be read.
    """
    return _read(studies_folder() / f"{name}.yaml")


def _read(path: Path) -> LoadedStudy:
    try:
        with path.open(encoding="utf-8") as f:
            text = f.read(MOST_TEXT + 1)
    except UnicodeDecodeError as e:
        raise refused(path, f"is not UTF-8 text (byte {e.start})") from e
    except OSError as e:
        raise refused(path, f"cannot be read: {e.strerror}") from e
    return parse_study(text, path)


def parse_study(
    text: str, path: Path, *, check_files: bool = True, stored: bool = False
) -> LoadedStudy:
    """Check the text of a study file.

    Args:
        text: The text.
        path: Path of the file, for messages and relative paths.
        check_files: Whether the files that it names must exist; a stored study is read without.
        stored: Whether it is the text that a database holds. It was run, so it is not asked what
            :mod:`autotune.study.owned` refuses.

    Raises:
        UserError: the study is refused; the message names file, key and what is allowed.
    """
    if len(text) > MOST_TEXT:
        raise refused(path, f"has more than {MOST_TEXT} characters: is it a study file?")
    try:
        raw = load(text)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise refused(path, e.problem or "is not YAML", where) from e
    except RecursionError as e:
        raise refused(path, "is nested too deeply") from e
    except (yaml.YAMLError, ValueError) as e:
        raise refused(path, f"is not YAML: {' '.join(str(e).split())}") from e
    except (AttributeError, LookupError, TypeError) as e:  # PyYAML raises these for `!!bool maybe`
        raise refused(path, "is not YAML: a value does not fit its !!tag") from e
    if not isinstance(raw, dict):
        raise refused(path, f"must be a mapping with the keys {', '.join(StudySpec.model_fields)}")
    if bad := not_plain(raw):
        raise refused(path, ": ".join(filter(None, bad)))
    try:
        spec = StudySpec.model_validate(raw)
    except ValidationError as e:
        raise refused(path, problems(e)) from e
    if not stored and (why := why_refused(spec)):
        raise refused(path, why)
    if check_files:
        spec = with_mixture(spec, lambda ref: config_of(ref, path.parent))
    loaded = LoadedStudy(spec=_as_begun(spec) if stored else spec, path=path, text=text)
    if check_files:
        _check_shapes(path, spec)
    if check_files and spec.workload.source is not None:
        key, file = spec.workload.source
        if not _is_file(loaded.base / file):
            kind = "JSON" if spec.workload.sharegpt else "JSONL"
            raise refused(
                path,
                f"workload.{key}: {shown(str(loaded.base / file))} does not exist; give a {kind} "
                "file, relative to the study file",
            )
    return loaded


def _check_shapes(path: Path, spec: StudySpec) -> None:
    """Refuse names of shapes that do not exist, before a command takes them for no shape.

    Raises:
        UserError: there is no such shape, or not in this place.
    """
    found = {"server.model": why_no_shape(spec.server.model, draft=False)}
    for arm, given in spec.server.drafts.items():
        if given.model is not None:
            place = "server.speculative" if arm is None else f"server.arms.{arm}"
            why = why_no_shape(given.model, target=given.method != "dflash")
            found[f"{place}.model"] = why
    for key, why in found.items():
        if why is not None:
            raise refused(path, f"{key}: {why}")


def _as_begun(spec: StudySpec) -> StudySpec:
    """Return a stored study with the method that it was run with.

    Up to 0.2.0 a study that named none was run with DFlash; since then the stored text has it.
    """
    draft = spec.server.speculative
    if draft is None or "method" in draft.model_fields_set:
        return spec
    return spec.with_method("dflash")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, a folder without permission
        return False
