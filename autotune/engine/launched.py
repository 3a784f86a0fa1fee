"""A launch taken apart again: from its argv to head, model and flags.

This is :func:`autotune.engine.command.plan_launch` backwards. On another machine, or after models
and vLLM have gone, the argv of a launch is all that is left of what was resolved for it: paths,
the interpreter, the draft's method, each flag as that vLLM takes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autotune.engine.acceptance import ACCEPTANCE_OPTION
from autotune.engine.command import Production, checked, served_env
from autotune.engine.rehearsal import LABEL_VARIABLE, without_plugin, without_rehearsal
from autotune.study.owned import ACCEPTANCE
from autotune.study.schema import ServerSpec

_DRAFT = "--speculative-config"
# Variables of a launch that hide modules from the server: see :func:`autotune.engine.entry.hiding`.
_HIDING = ("PYTHONPATH", "AUTOTUNE_HIDE")


@dataclass(frozen=True)
class Launched:
    """Parts of a launch's argv.

    Attributes:
        head: Program and words before the model.
        model: Path or name that vLLM loaded.
        rest: Words that the study wrote after ``vllm serve``.
        flags: Flags, each with its values, without host and port.
    """

    head: tuple[str, ...]
    model: str
    rest: tuple[str, ...]
    flags: tuple[tuple[str, ...], ...]

    @property
    def program(self) -> str:
        """Program that was run."""
        return self.head[0]

    @property
    def python(self) -> str | None:
        """Interpreter that ran vLLM; None where the argv does not tell."""
        module = self.head[self.head.index("-m") + 1 :] if "-m" in self.head else ()
        return self.head[0] if module and module[0].startswith("vllm.") else None

    @property
    def draft(self) -> str | None:
        """Path or name of the draft; None: the launch had none."""
        for name, *values in self.flags:
            if name == _DRAFT and (found := _config(values).get("model")) is not None:
                return str(found)
        return None

    def production(
        self,
        server: ServerSpec,
        kept: Mapping[str, str],
        own: Mapping[str, str],
        place: Callable[[str], str],
    ) -> Production:
        """Return how the launch is served in production, in the words that it was launched with.

        Args:
            server: The study's server.
            kept: Variables that are kept with the launch.
            own: Those of the user's own environment that may change its figures.
            place: Returns the path of a model's folder for the server.

        Raises:
            UserError: a text of the launch must not reach a shell or terminal.
        """
        model = place(self.model)
        # what only measuring needs, unless the study has it
        ours = ACCEPTANCE_OPTION if ACCEPTANCE not in server.flags else None
        real = self.flags if LABEL_VARIABLE not in kept else without_rehearsal(self.flags)
        flags = tuple(_placed(flag, place) for flag in real if flag[0] != ours)
        p = Production(
            head=(*self.head, model),
            rest=self.rest,
            flags=flags,
            env=served_env(own, server.env),
            hiding=_hiding(kept),
            model=model,
        )
        return checked(p)


def launched(argv: Sequence[str], command: Sequence[str] | None) -> Launched | None:
    """Return the parts of a launch's argv; None: it is not one of autotune's.

    Args:
        argv: Program and arguments of the launch.
        command: The study's ``server.command``.
    """
    words, listen = tuple(argv[:-4]), argv[-4:]
    if [*listen[::2]] != ["--host", "--port"]:
        return None
    at = next((i for i, w in enumerate(words) if i and w in {"--model", "serve"}), None)
    if at is None or at + 1 >= len(words):
        return None
    after = words[at + 2 :]
    written = tuple(command or ())
    rest = written[written.index("serve") + 1 :] if "serve" in written else ()
    if after[: len(rest)] != rest:
        rest = ()
    flags: list[list[str]] = []
    for word in after[len(rest) :]:
        if word.startswith("--"):
            flags.append([word])
        elif flags:
            flags[-1].append(word)
        else:
            return None
    return Launched(words[: at + 1], words[at + 1], rest, tuple(map(tuple, flags)))


def _config(values: Sequence[str]) -> dict[str, object]:
    """Return the value of ``--speculative-config``; empty: it is none."""
    try:
        found = json.loads(" ".join(values))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _placed(flag: tuple[str, ...], place: Callable[[str], str]) -> tuple[str, ...]:
    """Return a flag with the draft's folder in its place."""
    config = _config(flag[1:]) if flag[0] == _DRAFT else {}
    if not isinstance(config.get("model"), str):
        return flag
    return (flag[0], json.dumps({**config, "model": place(str(config["model"]))}))


def _hiding(kept: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that hide modules; what only a rehearsal has is left out."""
    found = {k: kept[k] for k in _HIDING if k in kept and "AUTOTUNE_HIDE" in kept}
    return {k: without_plugin(v) if k == "PYTHONPATH" else v for k, v in found.items()}
