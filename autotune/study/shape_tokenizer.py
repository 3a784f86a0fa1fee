"""A tokenizer for a shape: one token for each byte, and a word of its own for every other id.

vLLM needs a tokenizer to turn the ids that random weights choose into text. This one is written
without a library and without a download. Every id of the vocabulary has a text, so no id that a
model gives is unknown. Texts become one token per byte: about four times as many as with a
trained tokenizer, so prompts of text need the real one (``autotune shape --tokenizer DIR``), while
random token ids need none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Files of a tokenizer that are copied if they are there; one of the first two must be.
NEEDED = ("tokenizer.json", "tokenizer.model")
COPIED = (
    *NEEDED,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
)
_LEAST_KNOWN = 0.9  # of a vocabulary, by its own tokenizer; padding takes less
_ROLES = ("bos", "eos", "pad")
_CHAT = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


class _Unreadable(Exception):
    """A file is no tokenizer."""


class _Unknown(Exception):
    """What a file is cannot be known here; its text says why."""


def why_another_tokenizer(folder: Path, words: int) -> str | None:
    """Return why a folder's tokenizer cannot be a model's; None: it can, or that is not known.

    Args:
        folder: Folder of a model.
        words: Size of the model's vocabulary; larger ids than it has would end the engine. Ids that
            the tokenizer has not, which random weights choose, would be no text; of a real model
            they are few, as its vocabulary is padded.
    """
    path = _file_in(folder)
    if path is None:
        return None
    try:
        most = _largest_id(path)
    except _Unreadable:
        return f"{path} cannot be read as a tokenizer"
    except _Unknown:
        return None
    if _LEAST_KNOWN * words <= most + 1 <= words:
        return None
    return f"{path} is of another model: it has ids up to {most}, and this one has {words} tokens"


def why_unchecked(folder: Path) -> str | None:
    """Return why it cannot be told whether a folder's tokenizer is a model's; None: it can be.

    Args:
        folder: Folder of a model.
    """
    path = _file_in(folder)
    try:
        if path is not None and path.name != NEEDED[0]:  # that one is large, and read or refused
            _largest_id(path)
    except _Unreadable:
        return None  # which is refused
    except _Unknown as e:
        return f"{path} was not compared with the model's vocabulary: {e}"
    return None


def _file_in(folder: Path) -> Path | None:
    """Return the file that vLLM would read a folder's tokenizer from; None: it has none."""
    return next((path for name in NEEDED if (path := folder / name).is_file()), None)


def _largest_id(path: Path) -> int:
    """Return the largest id of a tokenizer; -1: it has none.

    Raises:
        _Unreadable: the file is no tokenizer.
        _Unknown: what it is cannot be known here.
    """
    try:
        if path.name != NEEDED[0]:
            return max(_pieces(path) - 1, *_added(path.parent))
        body = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = body["model"]["vocab"]
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        return int(max([*ids, *(x["id"] for x in body.get("added_tokens") or ())], default=-1))
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as e:
        raise _Unreadable from e


def _pieces(path: Path) -> int:
    """Return how many pieces a model of SentencePiece has.

    Raises:
        _Unknown: the library is not installed, or the file is of another kind, as that of Llama 3,
            which has lines of base64.
    """
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as e:
        raise _Unknown("`pip install sentencepiece` reads it") from e
    try:
        return int(SentencePieceProcessor(model_file=str(path)).get_piece_size())
    except (OSError, RuntimeError) as e:
        raise _Unknown("SentencePiece does not read it") from e


def _added(folder: Path) -> list[int]:
    """Return the ids that other files of a folder add to a model of SentencePiece, from -1."""
    by_text = _mapping_in(folder / "added_tokens.json").values()
    by_id = _mapping_in(folder / "tokenizer_config.json").get("added_tokens_decoder") or ()
    return [-1, *map(int, by_text), *map(int, by_id)]


def _mapping_in(path: Path) -> dict[str, Any]:
    """Return the mapping of a JSON file; empty: there is no such file."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def write_tokenizer(folder: Path, config: Mapping[str, Any]) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``generation_config.json``.

    Args:
        folder: Folder of the model.
        config: Its ``config.json``: size of the vocabulary, special tokens, longest sequence.

    Raises:
        OSError: the folder cannot be written.
    """
    special = _special(config)
    body: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, text in sorted(special.items())
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        },
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": _vocabulary(int(config["vocab_size"]), special),
            "merges": [],
        },
    }
    _write(folder / "tokenizer.json", body, indent=None)
    names = {f"{role}_token": special[i] for role in _ROLES if (i := _id(config, role)) is not None}
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.get("max_position_embeddings"),
            "clean_up_tokenization_spaces": False,
            "chat_template": _CHAT,
            **names,
        },
    )
    ids = {f"{role}_token_id": config.get(f"{role}_token_id") for role in _ROLES}
    _write(folder / "generation_config.json", {k: v for k, v in ids.items() if v is not None})


def _special(config: Mapping[str, Any]) -> dict[int, str]:
    """Return the special tokens by id; a role whose id another one has is left out."""
    found: dict[int, str] = {}
    for role in _ROLES:
        given = config.get(f"{role}_token_id")
        for number, i in enumerate(given if isinstance(given, list) else [given]):
            if i is not None:
                found.setdefault(i, f"<{role}>" if number == 0 else f"<{role}{number}>")
    return found


def _id(config: Mapping[str, Any], role: str) -> int | None:
    given = config.get(f"{role}_token_id")
    first = given[0] if isinstance(given, list) and given else given
    return first if isinstance(first, int) else None


def _vocabulary(size: int, special: Mapping[int, str]) -> dict[str, int]:
    """Return the id of each text, as byte-level BPE writes texts: a space is Ġ."""
    letters = iter(_byte_letters())
    out: dict[str, int] = {}
    for i in range(size):
        text = special.get(i) or next(letters, None) or f"Ġt{i}"
        out[text] = i
    return out


def _byte_letters() -> list[str]:
    """Return the letter that stands for each byte in byte-level BPE (GPT-2's table)."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)}
    hidden = iter(range(256, 512))
    return [chr(b if b in shown else next(hidden)) for b in range(256)]


def _write(path: Path, body: Mapping[str, Any], indent: int | None = 1) -> None:
    path.write_text(json.dumps(body, ensure_ascii=False, indent=indent), encoding="utf-8")
