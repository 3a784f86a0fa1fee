"""The section ``workload`` of a study: the load that is put on a server."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from autotune.study.keys import (
    MOST_REQUESTS,
    MOST_SECONDS,
    MOST_TOKENS,
    Model,
    Nothing,
    Result,
    Schedule,
)

if TYPE_CHECKING:
    from autotune.stats import LatencyFrom


class RandomPrompts(Model):
    """Prompts of token ids drawn uniformly, as `vllm bench serve --dataset-name random`."""

    input_len: Result[int] = Field(gt=0, le=MOST_TOKENS, description="tokens of every prompt")
    vocab_low: Result[int] = Field(default=256, ge=0, description="lowest token id drawn")
    vocab_high: Result[int] = Field(
        default=32000, gt=0, le=2**31, description="one above the highest id drawn"
    )

    @model_validator(mode="after")
    def _order(self) -> RandomPrompts:
        if self.vocab_low >= self.vocab_high:
            raise ValueError("vocab_low must be below vocab_high")
        return self

    def why_not(self, prompts: int) -> str | None:
        """Return why a number of different prompts cannot be drawn, in words; None: they can."""
        # 64 positions with two ids each are enough for any number of prompts
        possible = (self.vocab_high - self.vocab_low) ** min(self.input_len, 64)
        if possible < prompts:
            return (
                f"only {possible} different prompts exist with input_len {self.input_len} and ids "
                f"from {self.vocab_low} to {self.vocab_high - 1}; the study needs {prompts}"
            )
        if self.input_len * prompts > MOST_TOKENS:
            return (
                f"{prompts} prompts with input_len {self.input_len} are more than "
                f"{MOST_TOKENS} tokens; take fewer (workload.num_prompts) or shorter ones"
            )
        return None


def prompts_file(value: object) -> object:
    """Return a section of prompts; a text instead of a mapping is the file."""
    return {"file": value} if isinstance(value, str) else value


class ShareGptPrompts(Model):
    """Conversations as ShareGPT has them, sent as chats; a text instead of a mapping is the file.

    The defaults of the lengths are those of vLLM's benchmark, ``is_valid_sequence`` in
    ``vllm/benchmarks/datasets/datasets.py``.
    """

    file: Result[Path] = Field(
        description="JSON, relative to the study file: a list of objects with `conversations`, "
        "`conversation` or `messages`, a list of turns with `from` and `value` or `role` and "
        "`content`; or one such object a line"
    )
    turns: Result[Literal["first", "all"]] = Field(
        default="first",
        description="what is sent: the first human turn, or all turns up to the last human one",
    )
    tokenizer: Result[str | None] = Field(
        default=None,
        description="whose tokens are counted: a folder or a hub name; without it server.model",
    )
    min_len: Result[int] = Field(
        default=4,
        ge=1,
        le=MOST_TOKENS,
        description="tokens; shorter prompts, and shorter answers with `output_len: recorded`, are "
        "left out",
    )
    max_input_len: Result[int] = Field(
        default=1024, ge=1, le=MOST_TOKENS, description="tokens; longer prompts are left out"
    )
    max_total_len: Result[int] = Field(
        default=2048,
        ge=1,
        le=MOST_TOKENS,
        description="tokens; what is longer, prompt and answer together, is left out",
    )


class ReplayPrompts(Model):
    """A recorded request log, sent at its own times; a text instead of a mapping is the file."""

    file: Result[Path] = Field(
        description="relative to the study file: JSONL or a JSON list, each entry with `timestamp` "
        "(seconds, or ISO 8601) and `messages` or `prompt`; or a trace of lengths, JSONL or CSV, "
        "whose prompts are random token ids"
    )
    speed: Result[float] = Field(
        default=1.0,
        ge=1e-6,
        le=1e6,
        description="2: the gaps between the requests are half of the recorded ones",
    )
    timestamp_unit: Result[Literal["s", "ms", "us", "ns"] | None] = Field(
        default=None,
        description="of timestamps that are numbers; without it `s`, in Mooncake's traces `ms`",
    )
    vocab_low: Result[int] = Field(
        default=256, ge=0, description="lowest token id drawn for a trace without texts"
    )
    vocab_high: Result[int] = Field(
        default=32000, gt=0, le=2**31, description="one above the highest id drawn for it"
    )

    @model_validator(mode="after")
    def _order(self) -> ReplayPrompts:
        if self.vocab_low >= self.vocab_high:
            raise ValueError("vocab_low must be below vocab_high")
        return self


class WorkloadSpec(Model):
    """The load: the same requests, at the same times, for every trial of the study."""

    prompts: Result[Path | None] = Field(
        default=None,
        description="a JSONL file or JSON list, relative to the study file; each entry has "
        "`messages` (chat) or `prompt` (text), or is a request of an OpenAI batch file, or a "
        "question with `turns`",
    )
    random: RandomPrompts | None = Field(default=None, description="or random tokens")
    sharegpt: Annotated[ShareGptPrompts | None, BeforeValidator(prompts_file)] = Field(
        default=None, description="or the conversations of a ShareGPT file"
    )
    replay: Annotated[ReplayPrompts | None, BeforeValidator(prompts_file)] = Field(
        default=None, description="or a recorded request log, at its own times (open loop)"
    )
    output_len: Result[Annotated[int, Field(gt=0, le=10**9)] | Literal["recorded"]] = Field(
        description="max_tokens of every request; `recorded`: the length of each request's "
        "recorded answer"
    )
    tools: Result[bool] = Field(
        default=False,
        description="send the `tools` of a chat with it, as part of the prompt; the model may not "
        "call them (`tool_choice: none`)",
    )
    num_prompts: Result[int] = Field(
        gt=0, le=MOST_REQUESTS, description="most measured requests of a trial"
    )
    confirm_prompts: Schedule[int | None] = Field(
        default=None,
        gt=0,
        le=MOST_REQUESTS,
        description="requests of a trial that measures again, all of them sent; without it "
        "num_prompts",
    )
    warmup_prompts: Result[int | None] = Field(
        default=None,
        ge=0,
        le=MOST_REQUESTS,
        description="most requests before the measurement, with prompts of their own; they end "
        "when the server is warm. Without it 24, or 4 × max_concurrency if that is more",
    )
    repeat: Result[bool] = Field(
        default=False,
        description="begin again with the first prompt after the last; needs "
        "`enable-prefix-caching: false` in server.flags",
    )
    request_rate: Result[float] = Field(
        default=math.inf,
        ge=1e-6,
        allow_inf_nan=True,
        description="arrivals per second; .inf: all at once",
    )
    arrivals: Result[Literal["poisson", "constant"]] = Field(
        default="poisson", description="how they are spread: at random, or evenly"
    )
    max_concurrency: Result[int | None] = Field(
        default=None, gt=0, le=MOST_REQUESTS, description="most requests at a time"
    )
    latency_from: Result[Literal["intended", "send"] | None] = Field(
        default=None,
        description="where a latency begins: at the intended start (without it, with a "
        "request_rate) or at the sending (without it, in a closed loop; vLLM's benchmark always)",
    )
    ignore_eos: Result[bool] = Field(default=True, description="go on after the end-of-text token")
    temperature: Result[float] = Field(
        default=0.0, ge=0, description="of the sampling; 0: the likeliest token always"
    )
    seed: Result[int] = Field(
        default=0, ge=0, lt=2**32, description="chooses and orders prompts, and arrival times"
    )
    request_timeout_s: Nothing[float] = Field(
        default=600, gt=0, le=MOST_SECONDS, description="longest life of a request"
    )
    hang_timeout_s: Nothing[float] = Field(
        default=120,
        gt=0,
        le=MOST_SECONDS,
        description="longest time without a token; then a request hangs",
    )

    @model_validator(mode="after")
    def _one_source(self) -> WorkloadSpec:
        given = [self.prompts, self.random, self.sharegpt, self.replay]
        if sum(x is not None for x in given) != 1:
            raise ValueError("needs exactly one of `prompts`, `random`, `sharegpt` and `replay`")
        if self.tools and (self.random is not None or self.sharegpt is not None):
            raise ValueError("tools: only `prompts` and `replay` have chats with tools")
        if self.random is not None and self.output_len == "recorded":
            raise ValueError("output_len: random prompts have no recorded answers; give a number")
        if self.repeat and self.source is None:
            raise ValueError("repeat: random prompts do not run short")
        if self.repeat and self.replay is not None:
            raise ValueError("repeat: a log is sent once, at its own times")
        if self.replay is not None:
            for key in ("request_rate", "arrivals"):
                if key in self.model_fields_set:
                    raise ValueError(f"{key}: the log has its own times; see replay.speed")
        if self.max_concurrency is None and not self.open_loop:
            raise ValueError(
                "needs max_concurrency (closed loop), request_rate (open loop), or both"
            )
        return self

    @property
    def source(self) -> tuple[str, Path] | None:
        """Key and path of the file of requests, as the study names it; None: there is none."""
        if self.prompts is not None:
            return "prompts", self.prompts
        if self.sharegpt is not None:
            return "sharegpt.file", self.sharegpt.file
        return None if self.replay is None else ("replay.file", self.replay.file)

    @property
    def open_loop(self) -> bool:
        """Whether requests have their own times, independent of the end of earlier ones."""
        return self.replay is not None or not math.isinf(self.request_rate)

    @property
    def places(self) -> int | None:
        """Concurrency of a closed loop; None: an open loop, also one with a cap."""
        return None if self.open_loop else self.max_concurrency

    def keeps_busy(self, warmup: int) -> bool:
        """Return whether warm-up requests keep the closed loop full around the measured ones.

        A concurrency of 1 needs none.

        Args:
            warmup: Number of warm-up requests.
        """
        return self.places is None or self.places == 1 or warmup >= self.places

    @property
    def most_warmup(self) -> int:
        """Most warm-up requests: ``warmup_prompts``, or enough to see a steady server."""
        if self.warmup_prompts is not None:
            return self.warmup_prompts
        return max(24, 4 * (self.max_concurrency or 1))

    @property
    def latency_origin(self) -> LatencyFrom:
        """Start of a latency: the sending, or the intended start.

        In a closed loop it is the sending, because a client sends when it has its last answer. With
        a request rate it is the intended start, also where a cap on concurrency makes requests
        wait. Users then come whether or not the server is ready, and a late sender must not hide
        the wait that it causes ("coordinated omission", G. Tene, "How NOT to measure latency",
        2013).
        """
        return self.latency_from or ("intended" if self.open_loop else "send")
