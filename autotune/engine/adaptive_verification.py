"""vLLM's adaptive verification: ``enable_adaptive_verification`` of ``--speculative-config``.

The draft proposes n tokens as always. From its confidence in them and from what a step of each size
costs, vLLM decides how many are verified: few where the batch is full, all where it is not
(``v1/worker/gpu/spec_decode/adaptive_verification.py``). So n still sets the cost of drafting, the
memory and the lookahead, and a large n costs less at high loads than it does without.

=========  =========================================================================================
version    what has it (``config/speculative.py``, ``config/vllm.py``)
=========  =========================================================================================
0.28       DSpark (0.28.0 config/speculative.py: 241, 1141)
0.30       every draft that is a model, on model runner V2 (0.30.0 config/vllm.py: 2915)
=========  =========================================================================================

It needs full CUDA graphs, so no CPU has it, and an attention backend that takes batches of unequal
length. :mod:`autotune.engine.method_rules` has what is refused for certain.

A launch takes longer: while vLLM captures the graphs it runs a step of every captured size, at
``VLLM_ADAPTIVE_VERIFICATION_PROFILE_CONTEXT_LEN`` (8192) tokens of context, to learn what it costs
(0.33.0 v1/worker/gpu/model_runner.py: 1140). Where contexts are much longer, that variable tells.

Acceptance by position is biased low (PR #52992: 2 to 35 %), because a draft that is not verified
counts as not accepted. Such a launch tells nothing of what another n would give.
"""

from __future__ import annotations

from autotune.engine.rule import first_known
from autotune.study.schema import ServerSpec
from autotune.study.speculative import ADAPTIVE

_SINCE = (0, 28)
LAUNCH_NOTE = (
    "adaptive verification profiles a step of every CUDA graph at its start: that launch takes "
    "longer"
)


def verified(server: ServerSpec) -> ServerSpec:
    """Return the server with adaptive verification.

    Raises:
        ValueError: the server has no draft.
    """
    if server.speculative is None:
        raise ValueError("adaptive verification needs a draft")
    draft = server.speculative.model_copy(update={ADAPTIVE: True})
    return server.model_copy(update={"speculative": draft})


def why_no_adaptive(*versions: str | None) -> str | None:
    """Return why this vLLM is not given adaptive verification; None: its rules decide.

    Args:
        versions: Versions from several sources, or None; the first that is known counts.
    """
    found = first_known(*versions)
    if found is None:
        return "vLLM's version is unknown, so it is not known whether it has adaptive verification"
    if found[1] < _SINCE:
        return (
            f"vLLM {found[0]} has no adaptive verification; 0.28 has it for DSpark, and 0.30 for "
            "every draft that is a model"
        )
    return None
