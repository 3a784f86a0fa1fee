"""One row of a file as a request: the forms in which tools write prompts, chats and lengths.

Functions that look at one row raise a :class:`ValueError` whose text begins with the key; the
reader of the file puts the location before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from autotune.bench.data_file import keys_text
from autotune.errors import UserError, one_line

# Keys of a line's length: the recorded answer's before the requested limit, then the names of other
# tools, which were added later. `output_tokens` is the name in vLLM's custom dataset,
# `output_tokens_count` and `completion_tokens_count` are GuideLLM's, `completion_tokens` is that of
# OpenAI's usage, which proxies log.
_LENGTHS = (
    "output_len",
    "output_tokens",
    "max_completion_tokens",
    "max_tokens",
    "output_tokens_count",
    "completion_tokens_count",
    "completion_tokens",
    "output_length",
)
_LIMITS = ("max_completion_tokens", "max_tokens")
_MOST_LEN = 10**9
_CATEGORIES = ("category", "dataset")
_MOST_CATEGORY = 40  # characters
# Paths of OpenAI's API whose requests can be sent.
_PATHS = ("/chat/completions", "/completions")
# Keys of one question that is asked as a chat, as GuideLLM asks it.
_QUESTIONS = ("question", "instruction")
# Names that GuideLLM also takes for a text; here they could be anything.
_PERHAPS = ("text", "input", "content", "context")

Messages = list[dict[str, Any]]


class Shape(NamedTuple):
    """Lengths of a request of a trace without texts; its token ids are drawn later.

    Attributes:
        number: Position in the trace, from 0; it decides what is drawn.
        input_len: Number of prompt tokens.
        blocks: Numbers of the blocks that the prompt begins with. Equal numbers are equal tokens.
        block_size: Number of tokens of a block.
    """

    number: int
    input_len: int
    blocks: tuple[int, ...] = ()
    block_size: int = 0


class Entry(NamedTuple):
    """Content of one request of a file; exactly one of ``prompt``, ``messages``, ``shape`` is set.

    Attributes:
        prompt: Text or token ids.
        messages: Messages of a chat.
        output_len: Number of tokens of the recorded answer; None: the study has one length for all.
        tools: Tools that the file has with the chat; they are sent if the study says so.
        answered: Whether the chat ends with a message of the assistant.
        shape: Lengths of a prompt that is yet to be drawn.
        category: Category that the file has for the request; None: it has none.
    """

    prompt: str | list[int] | None
    messages: Messages | None
    output_len: int | None = None
    tools: list[Any] | None = None
    answered: bool = False
    shape: Shape | None = None
    category: str | None = None


def entry_of(where: str, row: Any, recorded: bool) -> tuple[Entry, bytes]:
    """Return one row of prompts or of a log, and a key that equal prompts share.

    Args:
        where: Location of the row, in words.
        row: The row.
        recorded: Whether it must have its own length.

    Raises:
        UserError: the row is no request.
    """
    if not isinstance(row, dict):
        raise UserError(f"{where}: must be an object with `messages` or `prompt`")
    try:
        body = _body(row)
        prompt, messages = _prompt(body)
        length = _length(row, body) if recorded else None
        key = orjson.dumps((prompt, messages))
    except ValueError as e:
        raise UserError(f"{where}: {e}") from e
    except TypeError as e:  # orjson reads more levels than it writes
        raise UserError(f"{where}: messages: are nested too deeply") from e
    tools = body.get("tools")
    given = tools if messages and isinstance(tools, list) and tools else None
    answered = messages is not None and messages[-1].get("role") == "assistant"
    return Entry(prompt, messages, length, given, answered, category=category_of(row)), key


def category_of(row: Mapping[str, Any]) -> str | None:
    """Return the category of a row, under the keys of MT-Bench, Spec-Bench and SPEED-Bench.

    A long text is no category, and may be private: it is left out.
    """
    found = next((row[k] for k in _CATEGORIES if isinstance(row.get(k), str)), "").strip()
    return found if 0 < len(found) <= _MOST_CATEGORY and found.isprintable() else None


def _body(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request of a row: the row itself, or the ``body`` of an OpenAI batch file."""
    body = row.get("body")
    if not isinstance(body, dict) or "messages" in row or "prompt" in row:
        return dict(row)
    url = row.get("url")
    if isinstance(url, str) and not url.rstrip("/").endswith(_PATHS):
        raise ValueError(
            f"url: is {one_line(url, 60)}; of an OpenAI batch file only requests to "
            "/v1/chat/completions and /v1/completions can be sent"
        )
    return body


def _prompt(row: dict[str, Any]) -> tuple[str | None, Messages | None]:
    """Return text or chat of a request."""
    # a table with both columns, such as one written by pandas, has a null in one of them
    row = {k: v for k, v in row.items() if v is not None or k not in ("messages", "prompt")}
    if "messages" not in row and "prompt" not in row:
        row = _renamed(row)
    if ("messages" in row) == ("prompt" in row):
        raise ValueError("needs exactly one of `messages` and `prompt`")
    if "messages" in row:
        return None, _chat(row["messages"], "messages")
    prompt = row["prompt"]
    if isinstance(prompt, list) and prompt:
        if all(isinstance(x, dict) for x in prompt):
            return None, _chat(prompt, "prompt")
        if "prompt_id" in row:  # MT-Bench on the hub
            return None, _asked(prompt, "prompt")
    if not isinstance(prompt, str) or not prompt:
        raise ValueError("prompt: must be a text that is not empty")
    return prompt, None


def _renamed(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without ``messages`` and ``prompt`` with the key that its own stands for."""
    if "chat_messages" in row:
        return {"messages": row["chat_messages"]}
    if isinstance(row.get("turns"), list):
        return {"messages": _asked(row["turns"], "turns")}
    # Alpaca's `input` and Dolly's `context` are empty where the instruction says all
    given = [k for k in (*_QUESTIONS, *_PERHAPS) if isinstance(row.get(k), str)]
    texts = [k for k in given if k in _QUESTIONS or row[k]]
    if len(texts) == 1 and texts[0] in _QUESTIONS:
        return {"messages": _asked([row[texts[0]]], texts[0])}
    raise ValueError(f"needs exactly one of `messages` and `prompt`; {_instead(row, texts)}")


def _instead(row: dict[str, Any], texts: Sequence[str]) -> str:
    """Return what a row without prompt is, and what to do."""
    for key in ("conversations", "conversation"):
        if key in row:
            return f"it has `{key}`, as ShareGPT: give the file as workload.sharegpt"
    if isinstance(row.get("params"), dict):
        return "it has `params`, as an Anthropic batch: write their `messages` into the line"
    if isinstance(row.get("response"), dict) and "custom_id" in row:
        return "it is a result of an OpenAI batch: give the file with its requests"
    if texts:
        names = " and ".join(f"`{k}`" for k in texts)
        return f"it has {names}: write `prompt` (sent as it is) or `messages` (sent as a chat)"
    return f"it has {keys_text(row)}"


def _asked(turns: list[Any], key: str) -> Messages:
    """Return the first turn of a question as a chat: later ones need answers of the model."""
    if not turns or not isinstance(turns[0], str) or not turns[0]:
        raise ValueError(f"{key}: must begin with a text that is not empty")
    return [{"role": "user", "content": turns[0]}]


def _chat(messages: Any, key: str) -> Messages:
    """Return the messages of a chat after checking what every server needs."""
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{key}: must be a list that is not empty")
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise ValueError(f"{key}[{i}]: must be an object with `role` and `content`")
        if not isinstance(message.get("role"), str):
            raise ValueError(f"{key}[{i}].role: must be a text such as user")
        if not isinstance(message.get("content"), str | list) and not _calls(message):
            raise ValueError(f"{key}[{i}].content: must be a text, or a list of parts")
    return messages


def _calls(message: Mapping[str, Any]) -> bool:
    """Return whether a message of the assistant calls tools, and so needs no text."""
    return (
        message["role"] == "assistant"
        and message.get("content") is None
        and bool(message.get("tool_calls") or message.get("function_call"))
    )


def _length(row: Mapping[str, Any], body: Mapping[str, Any]) -> int:
    """Return a row's own length."""
    places = [(row, k) for k in _LENGTHS] + [(body, k) for k in _LIMITS]
    for holder in (row, row.get("response")):
        if isinstance(holder, dict) and isinstance(usage := holder.get("usage"), dict):
            places.append((usage, "completion_tokens"))
    place = next((x for x in places if x[0].get(x[1]) is not None), None)
    if place is None:
        raise ValueError(
            "output_len: is missing; `output_len: recorded` in the study needs it in every line "
            "(output_tokens, output_tokens_count, completion_tokens, max_completion_tokens and "
            "max_tokens are read, too)"
        )
    length = place[0][place[1]]
    if type(length) is float and length.is_integer():  # pandas, where another row has none
        length = int(length)
    if type(length) is not int or not 1 <= length <= _MOST_LEN:
        raise ValueError(f"{place[1]}: must be a whole number of tokens from 1 up")
    return length
