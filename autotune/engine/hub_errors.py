"""Errors of a model hub: which model was asked for, and what to do.

The texts are those of huggingface_hub, transformers and ModelScope. The name of the model is in the
error or in its URL; the line in which vLLM logs its configuration says whether it is the target or
the draft.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from autotune.engine.log_lines import Raised

_REPO = r"[\w.-]+/[\w.-]*\w"
_URL = re.compile(
    rf"https?://[^/\s'\"]+/(?:api/)?(?:models/)?(?P<repo>{_REPO})"
    r"(?:/(?:resolve|raw|blob|tree|"
    r"revision)/(?P<revision>[^/\s]+)(?:/(?P<file>[^\s'\"?]*[^\s'\"?.,]))?)?"
)
_NAMED = re.compile(
    rf"(?:[Aa]ccess to model |[Rr]epo(?:sitory)?(?: id)? |model |load '?|path "
    rf"')'?(?P<repo>{_REPO})\b"
    rf"|(?:^|\s)'?(?P<first>{_REPO})'? (?:is not a local folder|does not appear)"
)
_REVISION = re.compile(r"[Ii]nvalid rev id: (?P<revision>\S+)|(?P<other>\S+) is not a valid git id")
_TARGET = re.compile(r"with config: model='(?P<model>[^']+)'|'model(?:_tag)?': '(?P<given>[^']+)'")
_DRAFT = re.compile(
    r"SpeculativeConfig\([^)]*?model='(?P<model>[^']+)'|"
    r"'speculative_config': \{[^}]*'model': '(?P<given>[^']+)'"
)
_NAMES = frozenset(
    {"GatedRepoError", "RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError",
     "RemoteEntryNotFoundError", "LocalEntryNotFoundError", "HfHubHTTPError",
     "OfflineModeIsEnabled", "LocalTokenNotFoundError", "DisabledRepoError", "HFValidationError",
     "NotExistError", "FileMetadataError"}
)  # fmt: skip
_WORDS = re.compile(
    r"gated repo|We couldn't connect to|is not a local folder and is not a valid model identifier|"
    r"is not a valid git identifier|Can't load (?:the |tokenizer|image|feature)|"
    r"couldn't find them in the cached files|outgoing traffic has been disabled|"
    r"(?:huggingface\.co|modelscope|hf-mirror)\S*.*(?:[Tt]imed? ?out|Max retries|"
    r"Failed to (?:resolve|establish)|Name or service not known|Client Error|Server Error)|"
    r"Consistency check failed|HF_HUB_OFFLINE"
)
_NETWORK = frozenset(
    {"ConnectionError", "ConnectTimeout", "ReadTimeout", "ConnectError", "Timeout", "SSLError",
     "ProxyError", "MaxRetryError", "NameResolutionError", "HTTPError", "HTTPStatusError"}
)  # fmt: skip


@dataclass(frozen=True)
class HubError:
    """An error of a hub.

    Attributes:
        reason: Which model could not be had, why, and what to do.
        at: Index of its line in the log.
        more: Lines that show it.
    """

    reason: str
    at: int
    more: tuple[str, ...]


def hub_error(raised: Sequence[Raised], log: str) -> HubError | None:
    """Return the first error of a hub among a log's exceptions; None: there is none.

    Args:
        raised: The exceptions, in the order of the log.
        log: The whole log.
    """
    for one in raised:
        words = " ".join((one.text, *one.more))
        frames = " ".join(f.file for f in one.frames)
        of_hub = one.name in _NAMES or _WORDS.search(words) is not None
        if not of_hub and one.name in _NETWORK:
            of_hub = (
                re.search(r"/huggingface_hub/|/modelscope/|/transformers/utils/hub", frames)
                is not None
            )
        if of_hub:
            later = [x for x in raised if x.at >= one.at]
            whole = " ".join(w for x in later for w in (x.name, x.text, *x.more))
            shown = tuple(w for w in one.more if _URL.search(w) or _REVISION.search(w))
            return HubError(_reason(one, whole, log), one.at, shown[:3])
    return None


def _reason(one: Raised, words: str, log: str) -> str:
    """Return the sentence; ``words`` are those of the error and of what followed from it."""
    url, named = _URL.search(words), _NAMED.search(words)
    repo = url["repo"] if url is not None else None
    if repo is None and named is not None:
        repo = named["repo"] or named["first"]
    targets = {m["model"] or m["given"] for m in _TARGET.finditer(log)}
    drafts = {m["model"] or m["given"] for m in _DRAFT.finditer(log)}
    targets -= drafts
    if repo is None and not _asks_for_draft(one) and len(targets) == 1:
        repo = next(iter(targets))
    elif repo is None and _asks_for_draft(one) and len(drafts) == 1:
        repo = next(iter(drafts))
    if repo in drafts or (_asks_for_draft(one) and repo not in targets):
        who = "the draft"
    elif repo in targets:
        who = "the target"
    else:
        who = "the model"
    if repo is not None:
        who += f" {repo}"
    found = _REVISION.search(words)
    revision = "" if found is None else found["revision"] or found["other"]
    if not revision and url is not None:
        revision = url["revision"] or ""
    file = "" if url is None else url["file"] or ""
    return _sentence(one.name, words, who, repo or "its page", revision, file)


def _asks_for_draft(one: Raised) -> bool:
    return any(
        "speculative" in (f.in_vllm or "") or "spec_decode" in f.file or "speculative" in f.function
        for f in one.frames
    )


def _sentence(name: str, words: str, who: str, repo: str, revision: str, file: str) -> str:
    page = f"https://huggingface.co/{repo}" if "/" in repo else repo
    if "token settings" in words:
        return (
            f"{who} is not there, or not for you: HF_TOKEN may not read gated models; allow it in "
            "the token's settings on the hub"
        )
    if name in {"GatedRepoError", "DisabledRepoError"} or "gated repo" in words:
        return f"{who} is gated: ask for access on {page}, and set HF_TOKEN to a token that has it"
    if name == "RevisionNotFoundError" or "valid git identifier" in words:
        said = f" {revision}" if revision else ""
        return f"{who} has no revision{said} on the hub: look at `revision` in the flags"
    if "outgoing traffic has been disabled" in words or name in {
        "LocalEntryNotFoundError",
        "OfflineModeIsEnabled",
    }:
        return (
            f"{who} is not there, in the hub's cache of this machine, and the hub was not asked or "
            "did not answer: fetch it first (`hf download`), or unset HF_HUB_OFFLINE"
        )
    if (
        "couldn't connect" in words
        or name in _NETWORK
        or re.search("(?i)timed? ?out|Max ret", words)
    ):
        return (
            f"{who} could not be fetched, because the hub was not reached: look at the network and "
            "its proxy, or fetch it elsewhere (`hf download`) and set HF_HUB_OFFLINE=1"
        )
    if name in {"EntryNotFoundError", "RemoteEntryNotFoundError"}:
        said = f"no file {file}" if file else "not all files of a model"
        return f"{who} has {said} on the hub: it is of another format, or incomplete"
    if "403" in words:
        return f"{who} is not for you: the hub refused HF_TOKEN (403); ask for access on {page}"
    if name == "RepositoryNotFoundError" or "401" in words or "404" in words:
        return (
            f"{who} is not there, or not for you: look at its name, and set HF_TOKEN if it is "
            "private"
        )
    code = re.search(r"\b([45]\d\d) (?:Client|Server) Error", words)
    if code is not None and code[1] in {"408", "429", "500", "502", "503", "504"}:
        return (
            f"{who} could not be fetched now: the hub answered HTTP {code[1]} (busy, or too many "
            "requests from here); try again later, with HF_TOKEN set, or fetch it first "
            "(`hf download`)"
        )
    said = "" if code is None else f" (HTTP {code[1]})"
    return f"{who} is not there, or not for you{said}: look at its name and at HF_TOKEN"
