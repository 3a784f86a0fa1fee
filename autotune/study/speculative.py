"""One way to draft: the keys of ``--speculative-config`` as a study file has them."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from autotune.study.keys import Affects, Result
from autotune.study.space import N

# Keys of the draft that autotune knows by name.
SCHEDULE = "num_speculative_tokens_per_batch_size"  # n by the number of requests in a step
ADAPTIVE = "enable_adaptive_verification"  # verify no more drafts than are worth it
REJECTION = "rejection_sample_method"
FLY = "fly"  # a value of REJECTION: accepts drafts that the target would not have written

# Methods that draft without a model of their own: from the text so far, or with layers of the
# target's checkpoint (vllm/config/speculative.py: SpeculativeConfig.__post_init__).
FROM_TEXT = ("ngram", "ngram_gpu", "suffix")
WITHOUT_MODEL = (*FROM_TEXT, "mtp", "dspark")
FOREIGN = ("custom_class", "extract_hidden_states")  # what drafts is somebody else's code
NGRAM = ("ngram", "[ngram]")  # vLLM takes these for the method in the place of a model, too


class SpeculativeSpec(BaseModel):
    """The draft; every other key goes to vLLM's ``--speculative-config`` as it is."""

    model_config = ConfigDict(extra="allow", frozen=True)
    other_keys: ClassVar[Affects] = Affects.RESULT

    method: Result[str | None] = Field(
        default=None,
        description="vLLM's name of the method; without it, the one that the draft's name and its "
        "`config.json` tell",
    )
    model: Result[str | None] = Field(
        default=None,
        description="the draft: a folder, a hub name, `demo:draft`, or that of a shape such as "
        "`shape:qwen3-8b:draft`; `mtp`, `ngram` and `suffix` "
        "need none",
    )

    @model_validator(mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        """Write keys with underscores, as vLLM does, and n-grams without a model."""
        if not isinstance(value, dict):
            return value
        out = {}
        for key, v in value.items():
            root, dot, rest = str(key).partition(".")
            name = f"{root.replace('-', '_')}{dot}{rest}"
            if name in out:
                raise ValueError(f"{key} is given twice")
            out[name] = v
        if out.get("model") in NGRAM and out.get("method") in (None, *NGRAM):
            del out["model"]
            out["method"] = "ngram"
        return out

    @model_validator(mode="after")
    def _drafts(self) -> SpeculativeSpec:
        method = self.method or ""
        if self.method == "":
            raise ValueError("method is empty; name one, or leave the key out")
        if not self.model and not method.endswith("_mtp") and method not in WITHOUT_MODEL:
            raise ValueError(
                "model is missing: the draft's folder or hub name; or give a method that needs "
                f"none: {', '.join(WITHOUT_MODEL)}"
            )
        return self

    @model_validator(mode="after")
    def _fixed_n(self) -> SpeculativeSpec:
        n = (self.model_extra or {}).get(N, 0)
        if type(n) is not int or n < 0:
            raise ValueError(f"{N} must be a whole number from 0 up")
        return self

    def given(self) -> dict[str, Any]:
        """Return the keys for ``--speculative-config``, without a method or model that is None."""
        body = self.model_dump()
        return {k: v for k, v in body.items() if v is not None or k not in ("method", "model")}
