"""Rules for adaptive verification and for single drafts, whose ``config.json`` tells the fact.

See :mod:`autotune.engine.rules`.
"""

from __future__ import annotations

from autotune.engine.compilation import cudagraph_mode
from autotune.engine.rule import Launch, Rule
from autotune.study.speculative import ADAPTIVE

_SPEC = "config/speculative.py: SpeculativeConfig.__post_init__"
_VERIFIED = (
    "config/vllm.py: VllmConfig._validate_adaptive_verification, "
    "in 0.28 _get_v2_model_runner_unsupported_features"
)
_V1 = "config/vllm.py: VllmConfig._get_v1_model_runner_unsupported_features"
# Methods that only model runner V1 has, by the first version in which V2 has the others.
_ONLY_V1 = {
    (0, 30): {"ngram", "ngram_gpu", "draft_model"},
    (0, 31): {"ngram", "ngram_gpu"},
}
_ALWAYS_V1 = {"suffix", "medusa", "mlp_speculator", "custom_class"}
# Drafts whose candidate head only model runner V2 has.
_CANDIDATES = {"DFlash2DraftModel", "DFlash2BeamDraftModel", "LiLiCorrDraftModel"}
_GEMMA, _LILICORR, _K3 = "Gemma4DSparkModel", "LiLiCorrDraftModel", "K3DSparkModel"


def only_v1(launch: Launch) -> bool:
    """Return whether only model runner V1 has the launch's way to draft, from 0.30 on."""
    if launch.minor is None or launch.minor < (0, 30) or launch.method is None:
        return False
    if launch.method in _ALWAYS_V1 | _ONLY_V1.get(launch.minor, set()):
        return True
    if launch.minor >= (0, 32) and launch.of_draft("use_heterogeneous_vocab") is True:
        return True
    in_one_pass = launch.of_draft("parallel_drafting") is True
    return in_one_pass and launch.method not in {"dflash", "dspark"}


def runs_v1(launch: Launch) -> bool:
    """Return whether the launch has model runner V1 for certain, from 0.30 on or by choice."""
    return only_v1(launch) or launch.known.v2 is False


def only_v2(launch: Launch) -> str | None:
    """Return what of the launch only model runner V2 has, in words; None: nothing is known."""
    if launch.n < 1:
        return None
    if launch.method == "dspark":
        return "DSpark"
    if adaptive(launch):
        return "adaptive verification"
    if launch.method == "dflash" and launch.draft.architectures & _CANDIDATES:
        return "a DFlash draft with a candidate head"
    if launch.of_draft("draft_lm_head_quantization") is not None:
        return "draft_lm_head_quantization"
    if launch.method == "dflash" and launch.draft.mixed:
        return "a DFlash draft with sliding and full attention"
    return None


def adaptive(launch: Launch) -> bool:
    """Return whether the launch has adaptive verification."""
    return launch.n >= 1 and launch.of_draft(ADAPTIVE) is True


def _other_method(launch: Launch) -> str | None:
    if not adaptive(launch) or launch.method in {None, "dspark"}:
        return None
    return f"{launch.vllm} has {ADAPTIVE} for dspark only, not for method {launch.method}"


def _needs_graphs(launch: Launch) -> str | None:
    if not adaptive(launch):
        return None
    s, partial = launch.settings, launch.since((0, 30))
    if launch.known.platform == "cpu":
        return f"{ADAPTIVE} needs model runner V2 and CUDA graphs; vLLM on a CPU has neither"
    mode = cudagraph_mode(s)
    if s.get("enforce_eager") is True:
        return f"{ADAPTIVE} needs CUDA graphs, which enforce_eager turns off"
    if mode == "NONE" or (partial and mode == "PIECEWISE"):
        return f"{ADAPTIVE} needs full CUDA graphs, and cudagraph_mode is {mode}"
    return None


def _not_with(launch: Launch) -> str | None:
    if not adaptive(launch):
        return None
    if launch.settings.get("enable_lora") is True:
        return f"{ADAPTIVE} does not go with enable_lora"
    stages = launch.number("pipeline_parallel_size") or 1
    if stages > 1:
        return f"{ADAPTIVE} does not go with pipeline_parallel_size = {stages}"
    return None


def _needs_logits(launch: Launch) -> str | None:
    if not adaptive(launch) or launch.method in {None, "dspark"}:
        return None
    if launch.of_draft("use_local_argmax_reduction") is True:
        return f"{ADAPTIVE} does not go with use_local_argmax_reduction"
    return None


def _on_v1(launch: Launch) -> str | None:
    what = only_v2(launch)
    if what is None or "watermark_config" in launch.settings:  # watermarks choose V2
        return None
    if launch.known.v2 is False:
        return f"{what} needs model runner V2, and VLLM_USE_V2_MODEL_RUNNER is 0"
    if only_v1(launch):
        return (
            f"{what} needs model runner V2, which {launch.vllm} has not for method {launch.method}"
        )
    return None


def _async_on_v1(launch: Launch) -> str | None:
    asked = launch.settings.get("async_scheduling") is True
    padded = launch.of_draft("disable_padded_drafter_batch") is not True
    if launch.n < 1 or not asked or padded or not only_v1(launch):
        return None
    return f"async_scheduling does not go with disable_padded_drafter_batch on {launch.vllm}"


def _whole_block(launch: Launch) -> str | None:
    """Check a DSpark draft of 0.26 and 0.27, which must draft a whole block."""
    size = launch.draft.dspark_block
    if launch.n < 1 or launch.method != "dspark" or size is None or launch.n >= size:
        return None
    return (
        f"{launch.vllm} needs n of at least dspark_block_size = {size} of the draft, not {launch.n}"
    )


def _blocks(launch: Launch) -> str | None:
    """Check DSpark drafts of 0.25 to 0.30: above their block, n is a multiple of it."""
    n, draft, unit = launch.n, launch.draft, None
    if launch.method != "dspark":
        return None
    if _GEMMA in draft.architectures and draft.head_tokens is None:
        unit = draft.block
    elif draft.kind == "deepseek_v41" and launch.minor == (0, 30):
        unit = draft.dspark_block
    elif draft.kind == "deepseek_v4":
        unit = draft.head_tokens
    if unit is None or unit < 1 or n <= unit or n % unit == 0:
        return None
    return f"{launch.vllm} needs an n above {unit} to be a multiple of it, the draft's; {n} is not"


def _omni(launch: Launch) -> str | None:
    n, size = launch.n, launch.draft.block or launch.draft.dspark_block
    if n < 1 or launch.method != "dspark" or launch.known.target != "qwen3_omni_moe":
        return None
    if size is None or n == size:
        return None
    return f"DSpark of Qwen3-Omni needs n = {size}, the draft's block_size, not {n}"


def _lilicorr(launch: Launch) -> str | None:
    n, size = launch.n, launch.draft.block
    if n < 1 or launch.method != "dflash" or _LILICORR not in launch.draft.architectures:
        return None
    if size is None or n < size:
        return None
    return f"a LiLiCorr draft needs n below its block_size = {size}, not {n}"


def _one_step(launch: Launch) -> str | None:
    if launch.n > 1 and launch.method == "mtp" and launch.draft.one_token:
        return f"the head of Parse 3.5 makes one token, so n must be 1, not {launch.n}"
    return None


def _inkling(launch: Launch) -> str | None:
    if (
        launch.n <= 1
        or launch.method != "mtp"
        or not (launch.draft.kind or "").startswith("inkling")
    ):
        return None
    return f"{launch.vllm} takes n = 1 only for the head of Inkling, not {launch.n}"


def _no_head(launch: Launch) -> str | None:
    if launch.n < 1 or launch.method != "mtp" or launch.known.target != "deepseek_v41":
        return None
    return "DeepSeek V4.1 has no head for method mtp; its draft is method dspark"


def _headless(launch: Launch) -> str | None:
    if launch.n < 1 or launch.method != "mtp" or "hf_overrides" in launch.settings:
        return None
    if not launch.draft.headless:
        return None
    whose = "the draft" if launch.of_draft("model") is not None else "the target"
    return f"{whose} ({launch.draft.kind}) has no head for method mtp"


def _head(launch: Launch) -> str | None:
    n, head = launch.n, launch.draft.head_tokens
    if launch.method != "mtp" or head is None or n <= head or n % head == 0:
        return None
    return f"n = {n} must be a multiple of the {head} tokens that the draft's head makes at once"


def _vocabulary(launch: Launch) -> str | None:
    target = launch.known.drafts.get(None)
    own, other = launch.draft.vocabulary, target.vocabulary if target is not None else None
    if launch.n < 1 or launch.method != "draft_model" or own is None or other is None:
        return None
    if own == other or launch.of_draft("use_heterogeneous_vocab") is True:
        return None
    return f"the draft has a vocabulary of {own} tokens, and the target one of {other}"


def _context_parallel(launch: Launch) -> str | None:
    ways = launch.number("decode_context_parallel_size") or 1
    if launch.n < 1 or launch.method != "dspark" or ways <= 1:
        return None
    if _K3 not in launch.draft.architectures:
        return None
    return f"{launch.vllm} has no decode_context_parallel_size = {ways} with DSpark of Kimi K3"


METHOD_RULES = (
    Rule(
        "one vocabulary for draft and target",
        _vocabulary,
        "config/speculative.py: SpeculativeConfig.verify_equal_vocab_size_if_draft_model",
    ),
    Rule("a head for multi-token prediction", _headless, f"{_SPEC} (hf_config_override)"),
    Rule("n of a head for multi-token prediction", _head, f"{_SPEC} (n_predict)"),
    Rule("one token of Inkling's head", _inkling, _SPEC, first=(0, 26), last=(0, 27)),
    Rule("one token of Parse 3.5", _one_step, _SPEC, first=(0, 33)),
    Rule("head of DeepSeek V4.1", _no_head, _SPEC, first=(0, 30)),
    Rule("a whole block of DSpark", _whole_block, _SPEC, first=(0, 26), last=(0, 27)),
    Rule("whole blocks of DSpark", _blocks, f"{_SPEC} (n_predict)", first=(0, 25), last=(0, 30)),
    Rule(
        "block of DSpark for Qwen3-Omni",
        _omni,
        "config/speculative.py: _validate_qwen3_omni_dspark",
        first=(0, 29),
    ),
    Rule(
        "DSpark of Kimi K3 with context parallelism",
        _context_parallel,
        _SPEC,
        first=(0, 27),
        last=(0, 28),
    ),
    Rule(
        "block of LiLiCorr",
        _lilicorr,
        "model_executor/models/lilicorr.py: LiLiCorr.__init__",
        first=(0, 31),
    ),
    Rule(
        "adaptive verification for DSpark only", _other_method, _SPEC, first=(0, 28), last=(0, 29)
    ),
    Rule("adaptive verification with full CUDA graphs", _needs_graphs, _VERIFIED, first=(0, 28)),
    Rule("adaptive verification without LoRA and pipelines", _not_with, _VERIFIED, first=(0, 28)),
    Rule("adaptive verification with the draft's logits", _needs_logits, _SPEC, first=(0, 30)),
    Rule(
        "async scheduling on model runner V1",
        _async_on_v1,
        "config/vllm.py: VllmConfig.__post_init__",
        first=(0, 33),
    ),
    Rule("what only model runner V2 has", _on_v1, _V1, first=(0, 29)),
)
