"""Our client and ``vllm bench serve`` on one launch of a real server: do they measure the same?

Both send the same requests with the same sampling, concurrency and arrival times, one after the
other in the order A B B A A B …, so that a slower or faster machine affects both equally.
Prefix caching is off, or whoever comes second would find the prompts cached.

Every run gives each figure once, by vLLM's definition (``vllm/benchmarks/serve.py``), bench's as it
reports it. As all runs send the same requests, all have the same spread of prompts,
and what runs of one client still differ by is chance: that scatter, pooled over both clients, gives
the ratio its interval (:class:`autotune.stats.Scatter`, Student's t). A bootstrap over paired
requests was tried and not taken, for it does not see what the requests of a run share: of the 12
pairs of runs of one client in ``studies/results/demo-cpu-crosscheck``, it finds 5 to differ in mean
E2EL at 95 %, and 4 with moving blocks of 8 requests.

Verdict of a figure, ours over bench's:

- ``equal``: shown to lie within the margin, by two one-sided tests at 5 %, which is a 90 % interval
  inside it (D. J. Schuirmann, "A comparison of the two one-sided tests procedure and the power
  approach for assessing the equivalence of average bioavailability", J. Pharmacokinetics and
  Biopharmaceutics 15, 1987). The margin is 3 %, and of TTFT at least 2 ms: a client's own work
  before the first token is no property of the server.
- ``agree``: the 95 % interval holds 1, but is too wide to show more; more rounds narrow it.
- ``doubtful``: it does not hold 1; but of this many figures, one may miss by chance.
- ``differ``: 1 lies outside even at the confidence that leaves all figures together an error of 5 %
  (Bonferroni).
- ``not judged``: ITL. Bench takes the time of every chunk, also of those without text (a chat's
  role, a part of a character), our client of those with text; what either saves does not tell the
  other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from autotune.bench.sample import Sample
from autotune.bench.server_metrics import ServerStats
from autotune.bench.vllm_bench import METRICS, PERCENTS, BenchResult
from autotune.errors import FailureKind, MeasureError
from autotune.results.tables import Column, Table, markdown_lines
from autotune.results.tables import Row as TableRow
from autotune.results.text import estimate_text, number, plain, point_text
from autotune.stats import Estimate, Measurement, Scatter
from autotune.stats.measurement import Floats
from autotune.study.space import Point
from autotune.study.workload import WorkloadSpec

OURS, BENCH = "autotune", "vllm bench serve"
MARGIN = 0.03
TTFT_MARGIN_MS = 2.0
_SAME = 1e-6  # relative; what rounding may change
# vLLM 0.26 ends a chat's E2EL with the usage, which follows the last chunk with a choice, and does
# not save when it came (0.32 ends with that chunk, and saves it). Within 0.3 ms on an H100.
_USAGE_S = 0.05


class Agreement(StrEnum):
    """What a comparison showed; see the module."""

    EQUAL = "equal"
    AGREE = "agree"
    DOUBTFUL = "doubtful"
    DIFFER = "differ"
    NOT_JUDGED = "not judged"


@dataclass(frozen=True)
class Row:
    """One figure of both clients.

    Attributes:
        name: vLLM's, such as ``p95_e2el_ms``; ``throughput`` leaves the emptying out.
        ours: Mean of our runs.
        bench: Mean of bench's runs.
        ratio: Ours over bench's, 95 % interval.
        margin: Relative difference that does not matter.
        verdict: See the module.
    """

    name: str
    ours: Estimate
    bench: Estimate
    ratio: Estimate
    margin: float
    verdict: Agreement


@dataclass(frozen=True)
class Run:
    """One pass over the requests.

    Attributes:
        client: ``OURS`` or ``BENCH``.
        file: Its raw data.
        figures: By vLLM's names, and ``throughput``; milliseconds and tokens per second.
        stats: What the server counted meanwhile.
    """

    client: str
    file: str
    figures: Mapping[str, float]
    stats: ServerStats


@dataclass(frozen=True)
class Crosscheck:
    """The whole comparison; ``lines`` and ``to_json`` show it.

    Attributes:
        study: Its name.
        point: What was launched.
        requests: Of each run.
        vllm: Version of the server.
        bench_vllm: Version of the client.
        machine: In one line.
        runs: In their order.
        notes: Where definitions differ, and what was changed, in words.
    """

    study: str
    point: Point
    requests: int
    vllm: str | None
    bench_vllm: str | None
    machine: str
    runs: Sequence[Run]
    notes: Sequence[str]

    @property
    def rows(self) -> list[Row]:
        """Every figure that both clients have."""
        ours, bench = ([r.figures for r in self.runs if r.client == c] for c in (OURS, BENCH))
        names = [n for n in ours[0] if all(r.figures.get(n, 0) > 0 for r in self.runs)]
        judged = sum(not _other_definition(n) for n in names)
        return [compare(n, [f[n] for f in ours], [f[n] for f in bench], judged) for n in names]

    def figures(self, verdict: Agreement) -> list[str]:
        """Return the figures with a verdict, as people read them."""
        return [_title(r.name) for r in self.rows if r.verdict is verdict]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "study": self.study,
            "params": dict(self.point),
            "requests": self.requests,
            "vllm": self.vllm,
            "bench_vllm": self.bench_vllm,
            "machine": self.machine,
            "agree": not self.figures(Agreement.DIFFER),
            "figures": [dataclasses.asdict(r) for r in self.rows],
            "runs": [dataclasses.asdict(r) for r in self.runs],
            "notes": list(self.notes),
        }

    def summary(self) -> str:
        """Return the verdict in a sentence or two."""
        if differing := self.figures(Agreement.DIFFER):
            return f"They differ in {', '.join(differing)}."
        equal, agree = len(self.figures(Agreement.EQUAL)), len(self.figures(Agreement.AGREE))
        doubtful = self.figures(Agreement.DOUBTFUL)
        text = (
            f"They agree: of {equal + agree + len(doubtful)} figures, {equal} are shown to be "
            f"equal within the margin, {agree} differ by no more than chance."
        )
        if doubtful:
            text += f" {', '.join(doubtful)}: doubtful, more --rounds would tell."
        return text

    def lines(self) -> list[str]:
        """Return the comparison for people, in Markdown."""
        rows = self.rows
        figures = [
            [
                _title(r.name),
                estimate_text(r.ours, number),
                estimate_text(r.bench, number),
                estimate_text(r.ratio, "{:.3f}".format),
                r.verdict + (f" within {r.margin:.0%}" if r.verdict is Agreement.EQUAL else ""),
            ]
            for r in rows
        ]
        runs = [
            [
                str(i),
                r.client,
                number(r.figures["output_throughput"]),
                number(r.figures["p95_e2el_ms"]),
                number(r.stats.acceptance_length) if r.stats.acceptance_length else "",
                "unknown" if r.stats.prefix_cache_hits is None else str(r.stats.prefix_cache_hits),
                r.file,
            ]
            for i, r in enumerate(self.runs, start=1)
        ]
        what = (
            f"{self.study}, {point_text(self.point)}: {self.requests} requests in each of "
            f"{len(self.runs)} runs on one launch; [low, high] is a 95 % interval. Server: vLLM "
            f"{self.vllm or 'of unknown version'}; bench: vLLM {self.bench_vllm}; machine: "
            f"{self.machine}."
        )
        lines = [
            what,
            "",
            *_table(["", OURS, BENCH, f"{OURS} / bench", ""], figures),
            "",
            self.summary(),
            "",
            *_table(
                [
                    "run",
                    "client",
                    "tok/s",
                    "p95 E2EL ms",
                    "acceptance length",
                    "prefix-cache hits",
                    "raw data",
                ],
                runs,
            ),
            "",
            *(f"- {note}" for note in self.notes),
        ]
        return [plain(line) for line in lines]


def compare(name: str, ours: Sequence[float], bench: Sequence[float], of: int = 1) -> Row:
    """Compare one figure of the runs of both clients; all values are positive.

    Args:
        of: How many figures are judged in all.

    >>> compare("output_throughput", [100, 101], [100, 100.5]).verdict
    <Agreement.EQUAL: 'equal'>
    """
    scatter = Scatter.pooled([ours, bench])
    mean = scatter.mean(bench)
    margin = max(MARGIN, TTFT_MARGIN_MS / mean.value) if name.endswith("ttft_ms") else MARGIN
    ratio = scatter.ratio(ours, bench)
    if _other_definition(name):
        verdict = Agreement.NOT_JUDGED
    elif _within(scatter.ratio(ours, bench, confidence=0.9), 1 / (1 + margin), 1 + margin):
        verdict = Agreement.EQUAL
    elif _holds(ratio, 1):
        verdict = Agreement.AGREE
    elif _holds(scatter.ratio(ours, bench, confidence=1 - 0.05 / of), 1):
        verdict = Agreement.DOUBTFUL
    else:
        verdict = Agreement.DIFFER
    return Row(name, scatter.mean(ours), mean, ratio, margin, verdict)


def _other_definition(name: str) -> bool:
    return name.endswith("itl_ms")


def _within(e: Estimate, low: float, high: float) -> bool:
    return e.low is not None and e.high is not None and low <= e.low and e.high <= high


def _holds(e: Estimate, value: float) -> bool:
    return (e.low is None or e.low <= value) and (e.high is None or value <= e.high)


def figures_of(m: Measurement) -> dict[str, float]:
    """Return vLLM's figures of a run by vLLM's names, and ``throughput`` without the emptying."""
    values = {"ttft": m.ttft, "tpot": m.tpot, "itl": m.itl, "e2el": m.end - m.start}
    return {
        "output_throughput": m.output_throughput,
        "throughput": m.throughput,
        **{
            f"p{p}_{name}_ms": float(np.percentile(values[name], p)) * 1000
            for name in METRICS
            for p in PERCENTS
            if len(values[name])
        },
    }


def samples_of(result: BenchResult) -> list[Sample]:
    """Return bench's requests as samples of our client, in the order of the requests."""
    each = zip(
        result.start_times,
        result.ttfts,
        result.itls,
        result.input_lens,
        result.output_lens,
        strict=True,
    )
    out = []
    for i, (start, ttft, itl, prompt, output) in enumerate(each):
        chunks = tuple((ttft + np.cumsum([0.0, *itl])).tolist())
        out.append(
            Sample(
                index=i,
                phase="measure",
                intended=start,
                start=start,
                ttft=ttft,
                end=start + chunks[-1],
                prompt_tokens=prompt,
                output_tokens=output,
                status="ok",
                error=None,
                chunks=chunks,
            )
        )
    return out


def check_summary(result: BenchResult) -> None:
    """Compute bench's own figures again from what it saved of each request.

    A request may end up to ``_USAGE_S`` after its last chunk. Where the file does not tell when a
    chat did, E2EL and TPOT have bounds only.

    Raises:
        MeasureError: they are not what it reports, so its file is not what we take it for.
    """
    last = np.array(result.ttfts) + np.array([sum(x) for x in result.itls])
    if result.latencies is not None:
        first = latest = last + np.clip(np.array(result.latencies) - last, 0, _USAGE_S)
    else:
        chat = (result.model_extra or {}).get("backend") == "openai-chat"
        first, latest = last, last + (_USAGE_S if chat else 0.0)
    highest = _figures_again(result, latest)
    for name, low in _figures_again(result, first).items():  # a percentile grows with each value
        said, high = result.figures.get(name, math.nan), highest[name]
        if not low * (1 - _SAME) <= said <= high * (1 + _SAME):
            value = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            raise MeasureError(
                FailureKind.REQUESTS,
                f"vllm bench serve reports {name} = {said:g}, its requests give {value}",
            )


def _figures_again(result: BenchResult, e2el: Floats) -> dict[str, float]:
    """Return bench's figures from its requests, if these took the given seconds."""
    tokens = np.array(result.output_lens)
    ttft = np.array(result.ttfts)
    several = tokens > 1
    values = {
        "ttft": ttft,
        "tpot": (e2el - ttft)[several] / (tokens[several] - 1),
        "itl": np.concatenate([np.array(x) for x in result.itls]),
        "e2el": e2el,
    }
    return {"output_throughput": float(tokens.sum() / result.duration)} | {
        f"p{p}_{name}_ms": float(np.percentile(x, p)) * 1000
        for name, x in values.items()
        for p in PERCENTS
        if len(x)
    }


def notes_of(load: WorkloadSpec, rounds: int, *, chat: bool) -> list[str]:
    """Return where the definitions differ, and what was changed for the comparison."""
    throughput = (
        "`output_throughput` is vLLM's: all output tokens over the whole time, the emptying at the "
        "end included. `throughput` leaves that out: it counts until the first request ends after "
        "the last was sent; bench has no such figure, it is computed from its requests."
    )
    first = (
        "bench's ends with the chunk that carries a chat's role, autotune's with the first text; "
        "both come with the first token. "
    )
    ttft = (
        f"TTFT: {first if chat else ''}Bench's clock runs before it has a connection, autotune's "
        "when it has one."
    )
    itl = (
        "ITL counts chunks, which hold several tokens each under speculation. It is not judged: "
        "bench counts every chunk, autotune those with text; a chat's role and a part of a "
        "character have none."
    )
    notes = [throughput, ttft, itl]
    if load.latency_origin != "send":
        notes.append(
            "Latencies count from the sending here, as in bench; the study's own count from the "
            "intended start."
        )
    notes.append(
        f"Each prompt is sent {2 * rounds} times, so the server ran with prefix caching off, "
        "even if the study has it on."
    )
    end = (
        "; here E2EL and TPOT end with the last chunk, where an older vLLM's own end with the "
        "usage after it"
    )
    notes.append(
        "Bench's own figures were computed again from its requests and are the same"
        f"{end if chat else ''}. Intervals: Student's t from the scatter between the {rounds} runs "
        f"of each client, {2 * rounds - 2} degrees of freedom; `equal`: the 90 % interval lies "
        "within the margin."
    )
    return notes


_UNITS = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2EL"}


def _title(name: str) -> str:
    """Return a figure's name for people: ``p95 E2EL ms``."""
    percent, _, rest = name.partition("_")
    metric, ms, _ = rest.partition("_ms")
    return f"{percent} {_UNITS[metric]} ms" if ms else f"`{name}` tok/s"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    columns = tuple(Column(heading) for heading in header)
    table = Table(columns, tuple(TableRow(tuple(cells)) for cells in rows))
    return markdown_lines(table, aligned=True)
