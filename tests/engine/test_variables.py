"""Variables of the user's environment: which are kept, and which may change a figure."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from autotune.engine import variables
from autotune.engine.command import plan_launch
from autotune.engine.probe import VllmInfo
from autotune.engine.variables import changed, deciding, is_kept, names_devices
from autotune.study.schema import ServerSpec
from autotune.study.space import N

DECIDE = (
    "VLLM_USE_V2_MODEL_RUNNER",
    "VLLM_TUNED_CONFIG_FOLDER",
    "VLLM_MODEL_REDIRECT_PATH",
    "VLLM_CPU_KVCACHE_SPACE",
    "VLLM_LOG_BATCHSIZE_INTERVAL",
    "VLLM_USE_FASTOKENS",
    "VLLM_MULTI_STREAM_GEMM_TOKEN_THRESHOLD",
    "VLLM_MAX_TOKENS_PER_EXPERT_FP4_MOE",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_TF32_OVERRIDE",
    "NCCL_P2P_DISABLE",
    "OMP_NUM_THREADS",
    "TORCHINDUCTOR_MAX_AUTOTUNE",
    "FLASHINFER_DISABLE_VERSION_CHECK",
    "TOKENIZERS_PARALLELISM",
    "LD_PRELOAD",
)
DO_NOT = (
    "VLLM_NO_USAGE_STATS",
    "VLLM_USAGE_SOURCE",
    "VLLM_LOGGING_LEVEL",
    "VLLM_CACHE_ROOT",
    "VLLM_HOST_IP",
    "VLLM_IMAGE_TAG",
    "VLLM_REQUEST_BODY_LOG_LEVEL",
    "VLLM_MAX_MEDIA_REQUEST_DECODE_BYTES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_CACHE",
    "CUDA_HOME",
    "CUDA_VERSION",
    "NCCL_VERSION",
    "NCCL_DEBUG",
    "NVIDIA_REQUIRE_CUDA",
    "NVIDIA_DRIVER_CAPABILITIES",
    "TRITON_CACHE_DIR",
)
NEVER_KEPT = ("HF_TOKEN", "VLLM_API_KEY", "CUDA_SECRET", "HOME", "EDITOR")


def test_what_may_change_a_figure_is_kept_and_compared() -> None:
    found = deciding(dict.fromkeys((*DECIDE, *DO_NOT, *NEVER_KEPT), "1"), {})
    assert set(found) == set(DECIDE)
    assert not any(map(is_kept, NEVER_KEPT))
    assert deciding({"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "1"}) == {}  # a key of the study


def test_a_launch_keeps_the_users_variables_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*DECIDE, *NEVER_KEPT):
        monkeypatch.setenv(name, "some value")
    monkeypatch.setenv("UCX_URL", "http://me:hunter2@there")
    info = VllmInfo("0.32.0", "vllm", "/opt/python", "cuda", None, (), ())
    spec = ServerSpec(model="org/model", command=("/bin/sh", "x"))
    plan = plan_launch(spec, {N: 0}, info, port=1, launch_id="x", resolve=lambda ref: ref)
    assert {plan.public_env[name] for name in DECIDE} == {"some value"}
    assert plan.public_env["VLLM_API_KEY"] == "***"  # autotune's own
    assert not {*NEVER_KEPT} - {"VLLM_API_KEY"} & plan.public_env.keys()
    assert "hunter2" not in str(plan.public_env)


def test_differences_are_told_with_both_values() -> None:
    then, now = {"VLLM_A": "1", "VLLM_B": "x"}, {"VLLM_B": "x", "FLASHINFER_C": "2"}
    assert list(changed(then, now)) == [("FLASHINFER_C", None, "2"), ("VLLM_A", "1", None)]
    # what an earlier autotune did not keep is unknown, which is no difference
    assert list(changed(then, now, complete=False)) == [("VLLM_A", "1", None)]


def test_devices_are_those_of_one_machine() -> None:
    assert names_devices("CUDA_VISIBLE_DEVICES")
    assert names_devices("HIP_VISIBLE_DEVICES")
    assert not names_devices("OMP_NUM_THREADS")


def test_the_table_is_about_variables_that_vllm_has() -> None:
    """Each name of the table is one of the installed vLLM, read as text: no import."""
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("there is no vLLM")
    text = Path(spec.origin).with_name("envs.py").read_text(encoding="utf-8")
    names = set(re.findall(r'"(VLLM_\w+)"', text))
    table = [n for group in variables.VLLM_NO_MATTER.values() for n in group]
    for name in (*table, *variables.DECIDING_PLACES):
        pattern = re.compile(re.escape(name).replace(r"\*", r"\w*"))
        assert any(map(pattern.fullmatch, names)), name
