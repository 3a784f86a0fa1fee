"""The target's tokenizer and chat template, and somebody's own prompts.

Of transformers' tokenizers only two files matter here: `tokenizer.json`, which the library
`tokenizers` reads, and the template, which is Jinja's. So transformers need not be imported, which
takes seconds and fails where a torchvision was built for another torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numpy.typing import NDArray
from tokenizers import Tokenizer

from autotune.errors import UserError

_CONTENT = "CONTENT"

Messages = list[dict[str, str]]


class Tokens:
    """Text to token ids and back, and chats to text.

    Args:
        folder: A checkpoint's, with `tokenizer.json`, `tokenizer_config.json` and a chat template.

    Raises:
        UserError: one of them is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text("utf-8"))
            config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
            apart = folder / "chat_template.jinja"
            template = apart.read_text("utf-8") if apart.exists() else config.get("chat_template")
        except OSError as e:
            raise UserError(f"{e.filename}: cannot be read: {e.strerror}") from e
        except Exception as e:  # what `tokenizers` raises has no class of its own
            raise UserError(f"{folder}: its tokenizer cannot be read: {e}") from e
        if not isinstance(template, str):
            raise UserError(f"{folder}: has no chat template; use an instruct model")
        # as transformers sets it up (utils/chat_template_utils.py)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        self._template = environment.from_string(template)
        self._names = {k: _text(v) for k, v in config.items() if k.endswith("_token")}

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which special tokens are spelled out; none is added."""
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def decode(self, ids: list[int]) -> str:
        """Text, special tokens spelled out."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def chat(self, messages: Messages) -> str:
        """A chat by the template, up to where the answer begins; a jinja2.TemplateError says why
        the template refuses it."""
        return self._template.render(messages=messages, add_generation_prompt=True, **self._names)

    @property
    def added(self) -> set[int]:
        """Ids of the tokens that stand beside the words: ``<|im_start|>`` and the like."""
        return set(self._tokenizer.get_added_tokens_decoder())


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _text(token: str | Mapping[str, str] | None) -> str:
    """A special token of a tokenizer_config.json, which may be spelled out as an object."""
    return token["content"] if isinstance(token, Mapping) else token or ""


@dataclass(frozen=True)
class Chat:
    """What surrounds a user's turn in the target's chat template, as tokens.

    Attributes:
        prefix: All that comes before it, the system prompt included.
        end: Ends a turn.
        header: From there to the answer.
        plain: The ids that are no added tokens.
        vocabulary: How many ids there are.
    """

    prefix: tuple[int, ...]
    end: int
    header: tuple[int, ...]
    plain: NDArray[np.int64]
    vocabulary: int

    @classmethod
    def of(cls, tokens: Tokens, vocabulary: int) -> Chat:
        """Reads it off a template.

        Raises:
            UserError: the template is not of the kind
                ``… user's text, one token for the end of the turn, header of the answer``.
        """
        text = tokens.chat([{"role": "user", "content": _CONTENT}])
        before, _, after = text.partition(_CONTENT)
        prefix, rest = tokens.encode(before), tokens.encode(after)
        if not prefix or len(rest) < 2:
            raise UserError(
                "the target's chat template has nothing around the user's text; training needs "
                "a token that ends a turn and a header of the answer, as ChatML has"
            )
        plain = np.array(sorted(set(range(vocabulary)) - tokens.added), np.int64)
        return cls(tuple(prefix), rest[0], tuple(rest[1:]), plain, vocabulary)


def read_prompts(path: Path, tokens: Tokens) -> list[list[int]]:
    """The chats of a JSONL file as tokens, up to where the answer begins.

    Args:
        path: Each line an object with ``messages``, as in studies/prompts; other keys are ignored.
        tokens: The target's.

    Raises:
        UserError: a line is no such object, or the chat template refuses it.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: is not UTF-8; save it as that") from e
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            text = tokens.chat(_messages(json.loads(line)))
        except (ValueError, jinja2.TemplateError) as e:
            raise UserError(f"{path}, line {number}: {e}") from e
        found.append(tokens.encode(text))
    if not found:
        raise UserError(f"{path}: has no prompts; each line is an object with `messages`")
    return found


def _messages(row: Any) -> Messages:
    """The chat of a line; a ValueError says what is wrong with it."""
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        raise ValueError("must be an object with `messages`, a list that is not empty")
    for i, m in enumerate(messages):
        if not isinstance(m, dict) or not all(
            isinstance(m.get(key), str) for key in ("role", "content")
        ):
            raise ValueError(f"messages[{i}]: must be an object with texts `role` and `content`")
    if messages[-1]["role"] == "assistant":
        raise ValueError("messages: end with the assistant's; the target is to answer the last")
    return messages


def sha256(path: Path) -> str:
    """Of a file of prompts, for the recipe; UserError: it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror}") from e
