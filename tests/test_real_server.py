"""Real vLLM servers on the demo pair, started and forked: half a minute each on two cores."""

from __future__ import annotations

import uuid
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from autotune.engine.command import free_port, plan_launch
from autotune.engine.probe import VllmInfo, probe
from autotune.serving import warm_start
from autotune.serving.process_tree import port_is_free, processes_of
from autotune.serving.server import Server
from autotune.serving.warm_start import WarmStart
from autotune.study.schema import ServerSpec
from tests.studies import PATIENCE_S

pytestmark = pytest.mark.real

SERVER = ServerSpec(
    model="demo:target",
    flags={"enforce_eager": True, "max_model_len": 1024, "max_num_seqs": 2},
    env={"VLLM_CPU_KVCACHE_SPACE": "1"},
    speculative={"method": "dflash", "model": "demo:draft"},
    stop_timeout_s=PATIENCE_S,
)


@pytest.fixture(scope="module")
def info() -> VllmInfo:
    found = probe(SERVER)
    if found.device != "cpu":
        pytest.skip("the demo pair is for vLLM on a CPU")
    return found


def demo_server(
    log: Path,
    launch_id: str,
    info: VllmInfo,
    warm: WarmStart | None = None,
    *,
    port: int | None = None,
    spec: ServerSpec = SERVER,
) -> Server:
    from autotune.study.models import resolve_model

    plan = plan_launch(
        spec,
        {"num_speculative_tokens": 3, "max_num_batched_tokens": 512},
        info,
        port=port or free_port(),
        launch_id=launch_id,
        resolve=lambda ref: resolve_model(ref, Path()),
        acceptance=True,
    )
    return Server(plan, launch_id=launch_id, log_path=log, server=spec, info=info, warm=warm)


def kinds(server: Server) -> dict[str, tuple[list[int], int]]:
    """Cores and threads of each kind of process that vLLM has."""
    found = {}
    for p in server.processes():
        title = " ".join(p.cmdline())
        kind = next((k for k in ("EngineCore", "Worker", "supervisor.py") if k in title), "API")
        if "resource_tracker" not in title:
            found[kind] = (p.cpu_affinity(), p.num_threads())
    return found


def shared_memory() -> set[str]:
    """What of it would outlive its processes."""
    return {p.name for p in Path("/dev/shm").glob("psm_*")}  # noqa: S108 – only looked at


def answered(
    log: Path, info: VllmInfo, warm: WarmStart
) -> tuple[bool, str, dict[str, tuple[list[int], int]]]:
    """Whether a server was forked, its answer, and what its processes have; it is over then."""
    server = demo_server(log, uuid.uuid4().hex, info, warm)
    try:
        identity = server.start()
        assert server.wait_ready(lambda _: None) == info.version
        ask = partial(
            httpx.post,
            f"{server.plan.base_url}/v1/chat/completions",
            json={
                "model": server.plan.served_name,
                "messages": [{"role": "user", "content": "Name the planets."}],
                "max_tokens": 32,
                "temperature": 0,
            },
            timeout=PATIENCE_S,
            trust_env=False,
        )
        assert ask().status_code == 401
        answer = ask(headers={"Authorization": f"Bearer {server.plan.api_key}"})
        text = answer.raise_for_status().json()["choices"][0]["message"]["content"]
        found = identity.warm, text, kinds(server)
    finally:
        report = server.stop()
    assert (report.exit_code, report.killed) == (0, 0), server.log_tail()
    assert not processes_of(server.launch_id)
    assert not psutil.pid_exists(identity.pid)
    assert port_is_free(server.plan.port)
    return found


def test_a_forked_server_is_as_a_started_one(
    tmp_path: Path, info: VllmInfo, monkeypatch: pytest.MonkeyPatch
):
    # as on a machine where none ran before: the first launch shows what a worker is given
    monkeypatch.setattr(warm_start, "_memory", lambda *_: tmp_path / "worker.json")
    seen, before, log = [], shared_memory(), tmp_path / "fork-server.log"
    for _ in range(2):  # runs: the second knows it from the first
        with WarmStart(SERVER, info, log) as warm:
            seen.append(answered(tmp_path / f"log-{len(seen)}", info, warm))
            assert shared_memory() <= before
    assert [warm for warm, _, _ in seen] == [False, True], log.read_text()[-2000:]
    (_, text, cold), (_, forked_text, found) = seen
    assert {"API", "EngineCore", "Worker", "supervisor.py"} == cold.keys()
    assert forked_text == text
    assert {k: cores for k, (cores, _) in found.items()} == {
        k: cores for k, (cores, _) in cold.items()
    }
    assert found["Worker"] == cold["Worker"]
    # without the threads of OpenBLAS, for which serving has no work
    assert all(threads <= cold[k][1] for k, (_, threads) in found.items())
