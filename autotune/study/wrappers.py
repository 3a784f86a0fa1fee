"""Programs that start another program: what their options take, and whether a launch keeps them.

``autotune init`` reads a command with this table, and :mod:`autotune.engine.entry` finds the
interpreter behind ``server.command`` with it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from autotune.errors import UserError
from autotune.study.programs import program_name


class Fate(Enum):
    """What becomes of a wrapper.

    Attributes:
        KEEP: It stays in ``server.command``, and the next word runs in its place.
        BLIND: It stays, but which program the next word is, only the wrapper knows.
        DROP: It is left out.
        REFUSE: A server behind it cannot be owned.
    """

    KEEP = "keep"
    BLIND = "blind"
    DROP = "drop"
    REFUSE = "refuse"


@dataclass(frozen=True)
class Wrapper:
    """A program that starts the program behind it.

    Attributes:
        fate: What becomes of it.
        why: Why it is left out or refused.
        values: Options that take the next word as their value.
        positional: Number of words before the program, such as the CPU list of ``taskset``.
        verbs: Words one of which must come first, such as ``run``; empty: none.
        ends: Options after which it starts no program, such as ``-p PID``.
        other_user: Whether the program runs as another user, with another PATH.
    """

    fate: Fate
    why: str = ""
    values: frozenset[str] = frozenset()
    positional: int = 0
    verbs: frozenset[str] = frozenset()
    ends: frozenset[str] = frozenset()
    other_user: bool = False


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_UV = _words(
    """--with --with-editable --with-requirements --extra --no-extra --group --no-group --only-group
    --env-file --python -p --project --directory --package --index --default-index --index-url -i
    --extra-index-url --find-links -f --index-strategy --keyring-provider --resolution --prerelease
    --cache-dir --config-file --link-mode --exclude-newer --from --color --refresh-package -P
    --upgrade-package --reinstall-package --no-build-package --no-binary-package
    --allow-insecure-host --torch-backend --overrides --constraints -c -w"""
)
_SERVER_OWNED = "autotune watches the server in the foreground and ends it"
_INIT = "autotune itself is the parent of the server and collects its processes"
_PROFILER = "a profiler slows the server down"
_MANY = "it starts several processes or other machines' programs, which autotune cannot own"
_RUN = frozenset({"run"})

WRAPPERS = {
    "numactl": Wrapper(
        Fate.KEEP,
        values=_words(
            """-C --physcpubind -N --cpunodebind -m --membind -i --interleave -p --preferred -P
            --preferred-many -w --weighted-interleave"""
        ),
        ends=_words("-s --show -H --hardware"),
    ),
    "taskset": Wrapper(Fate.KEEP, positional=1, ends=_words("-p --pid -ap")),
    "nice": Wrapper(Fate.KEEP, values=_words("-n --adjustment")),
    "ionice": Wrapper(
        Fate.KEEP, values=_words("-c --class -n --classdata"), ends=_words("-p --pid")
    ),
    "chrt": Wrapper(
        Fate.KEEP,
        positional=1,
        values=_words("-T --sched-runtime -P --sched-period -D --sched-deadline"),
        ends=_words("-p --pid -m --max"),
    ),
    "env": Wrapper(Fate.KEEP, values=_words("-u --unset -C --chdir")),
    "uvx": Wrapper(Fate.BLIND, values=_UV),
    "uv": Wrapper(Fate.BLIND, values=_UV, verbs=frozenset({"run", "tool"})),
    "conda": Wrapper(Fate.BLIND, values=_words("-n --name -p --prefix --cwd"), verbs=_RUN),
    "mamba": Wrapper(Fate.BLIND, values=_words("-n --name -p --prefix --cwd"), verbs=_RUN),
    "micromamba": Wrapper(
        Fate.BLIND,
        values=_words("-n --name -p --prefix --cwd -a --attach -r --root-prefix"),
        verbs=_RUN,
    ),
    "poetry": Wrapper(Fate.BLIND, values=_words("-C --directory -P --project"), verbs=_RUN),
    "pixi": Wrapper(
        Fate.BLIND, values=_words("-e --environment --manifest-path -m --color"), verbs=_RUN
    ),
    "pdm": Wrapper(Fate.BLIND, values=_words("-p --project -s --site-packages"), verbs=_RUN),
    "rye": Wrapper(Fate.BLIND, values=_words("--pyproject"), verbs=_RUN),
    "pipenv": Wrapper(Fate.BLIND, verbs=_RUN),
    "pipx": Wrapper(Fate.BLIND, values=_words("--spec --python"), verbs=_RUN),
    "opentelemetry-instrument": Wrapper(
        Fate.BLIND,
        values=_words(
            "--traces_exporter --metrics_exporter --service_name --exporter_otlp_endpoint"
        ),
    ),
    "nohup": Wrapper(Fate.DROP, "autotune's supervisor holds the server"),
    "exec": Wrapper(Fate.DROP, "of the shell", values=_words("-a")),
    "command": Wrapper(Fate.DROP, "of the shell", ends=_words("-v -V")),
    "eval": Wrapper(Fate.DROP, "of the shell"),
    "time": Wrapper(Fate.DROP, "autotune measures", values=_words("-f --format -o --output")),
    "stdbuf": Wrapper(
        Fate.DROP,
        "autotune sets PYTHONUNBUFFERED",
        values=_words("-i --input -o --output -e --error"),
    ),
    "unbuffer": Wrapper(Fate.DROP, "autotune sets PYTHONUNBUFFERED"),
    "setsid": Wrapper(Fate.DROP, _SERVER_OWNED),
    "daemonize": Wrapper(Fate.REFUSE, _SERVER_OWNED),
    "timeout": Wrapper(
        Fate.DROP,
        "autotune ends its servers",
        positional=1,
        values=_words("-k --kill-after -s --signal"),
    ),
    "sudo": Wrapper(
        Fate.DROP,
        "autotune must be able to end the server; start autotune itself as that user",
        values=_words("-u --user -g --group -h --host -p --prompt -C -D --chdir -R -T -U"),
        ends=_words("-l -v -k -K -e"),
        other_user=True,
    ),
    "doas": Wrapper(
        Fate.DROP,
        "autotune must be able to end the server; start autotune itself as that user",
        values=_words("-u -C"),
        other_user=True,
    ),
    "tini": Wrapper(Fate.DROP, _INIT, values=_words("-p -e")),
    "docker-init": Wrapper(Fate.DROP, _INIT, values=_words("-p -e")),
    "dumb-init": Wrapper(Fate.DROP, _INIT, values=_words("-r --rewrite")),
    "catatonit": Wrapper(Fate.DROP, _INIT),
    "systemd-run": Wrapper(
        Fate.DROP,
        "a unit of systemd is no child of autotune; with --scope it is one",
        values=_words(
            """-p --property -u --unit --description --slice -E --setenv --uid --gid --nice
            --working-directory -M --machine -H --host"""
        ),
    ),
    "nsys": Wrapper(Fate.REFUSE, _PROFILER),
    "ncu": Wrapper(Fate.REFUSE, _PROFILER),
    "rocprof": Wrapper(Fate.REFUSE, _PROFILER),
    "rocprofv3": Wrapper(Fate.REFUSE, _PROFILER),
    "perf": Wrapper(Fate.REFUSE, _PROFILER),
    "py-spy": Wrapper(Fate.REFUSE, _PROFILER),
    "strace": Wrapper(Fate.REFUSE, _PROFILER),
    "gdb": Wrapper(Fate.REFUSE, _PROFILER),
    "watch": Wrapper(Fate.REFUSE, "it starts the server again and again"),
    "screen": Wrapper(Fate.REFUSE, _SERVER_OWNED),
    "tmux": Wrapper(Fate.REFUSE, _SERVER_OWNED),
    "torchrun": Wrapper(Fate.REFUSE, _MANY),
    "accelerate": Wrapper(Fate.REFUSE, _MANY),
    "deepspeed": Wrapper(Fate.REFUSE, _MANY),
    "mpirun": Wrapper(Fate.REFUSE, _MANY),
    "mpiexec": Wrapper(Fate.REFUSE, _MANY),
    "ray": Wrapper(Fate.REFUSE, _MANY),
    "ssh": Wrapper(Fate.REFUSE, _MANY),
    "srun": Wrapper(Fate.REFUSE, _MANY),
}
# `env -i` and `sudo` without -E would take away what marks a server as autotune's.
_EMPTIES = re.compile(r"-[a-zA-Z]*i[a-zA-Z]*|--ignore-environment|-")


@dataclass(frozen=True)
class Wrapped:
    """A command's first wrapper.

    Attributes:
        name: Its name.
        wrapper: Its entry in the table.
        words: Its words, options included.
        rest: The program behind it.
    """

    name: str
    wrapper: Wrapper
    words: tuple[str, ...]
    rest: tuple[str, ...]


def unwrap(words: Sequence[str]) -> Wrapped | None:
    """Split a command behind its first wrapper.

    Returns:
        None if the first word is no wrapper, or one that starts nothing here.

    Raises:
        UserError: a server behind this wrapper cannot be owned.
    """
    name = program_name(words[0]) if words else ""
    wrapper = WRAPPERS.get(name)
    if wrapper is None:
        return None
    if wrapper.fate is Fate.REFUSE:
        raise UserError(f"`{name}` in front of vLLM: {wrapper.why}; leave it out")
    at = 1
    if wrapper.verbs:
        at = _options(wrapper, words, at)
        if at >= len(words) or words[at] not in wrapper.verbs:
            return None
        at += 1
        if words[at - 1] == "tool":  # uv tool run
            at += 1
    end = _options(wrapper, words, at)
    if any(word.partition("=")[0] in wrapper.ends for word in words[1:end]):
        return None
    if name == "env":
        _check_environment_kept(words[at:end])
    if name == "systemd-run" and "--scope" in words[:end]:
        wrapper = Wrapper(Fate.KEEP)
    end += wrapper.positional
    return Wrapped(name, wrapper, tuple(words[:end]), tuple(words[end:]))


def _options(wrapper: Wrapper, words: Sequence[str], at: int) -> int:
    """Return the position after the options that begin at one."""
    while at < len(words) and words[at].startswith("-") and words[at] != "-":
        word = words[at]
        if word == "--":
            return at + 1
        if word in ("-m", "--module") and "-m" not in wrapper.values:
            return at  # `uv run -m MODULE`
        at += 2 if word in wrapper.values else 1
    return at


def _check_environment_kept(options: Sequence[str]) -> None:
    """Refuse ``env -i``.

    Raises:
        UserError: it is given.
    """
    for word in options:
        if not word.startswith(("-u", "-C", "--unset", "--chdir")) and _EMPTIES.fullmatch(word):
            raise UserError(
                f"`env {word}`: a server without autotune's variables cannot be owned; leave it "
                "out, and set what the server needs in server.env"
            )
