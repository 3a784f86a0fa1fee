"""Curves of replayed searches: hypervolume still missing, by launches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from search_replay import REACHED
from search_table import Record

# Okabe and Ito's colors, as in autotune/output/figures/pareto.py; ours stands out
COLORS = {
    "ours": "#D55E00",
    "ours-4": "#F0E442",
    "ours-8": "#7A5C00",
    "gp": "#0072B2",
    "tpe": "#009E73",
    "nsga2": "#CC79A7",
    "botorch": "#56B4E9",
    "sweep": "#E69F00",
    "shuffled": "#8A94A0",
    "grid": "#333333",
    "random": "#C0C4C8",
}
FLOOR = 0.001  # the curves' logarithm has no zero, and replays end beyond `--enough`
_MOST_SHOWN = 60


def figure(records: Sequence[Record]) -> Any:
    """Median of each strategy with its quartiles as a band, a panel a world."""
    from plotly.subplots import make_subplots

    worlds = list(dict.fromkeys(r["world"] for r in records))
    columns = min(3, len(worlds))
    rows = math.ceil(len(worlds) / columns)
    fig = make_subplots(
        rows,
        columns,
        subplot_titles=worlds,
        horizontal_spacing=0.07,
        vertical_spacing=0.32 / rows,
    )
    shown: set[str] = set()
    for k, world in enumerate(worlds):
        place = {"row": k // columns + 1, "col": k % columns + 1}
        own = [r for r in records if r["world"] == world]
        for strategy in dict.fromkeys(r["strategy"] for r in own):
            low, middle, high = _curves([r["shares"] for r in own if r["strategy"] == strategy])
            x = np.arange(1, len(middle) + 1)
            color = COLORS.get(strategy, "#8A94A0")
            if strategy in ("ours", "gp"):
                fig.add_scatter(
                    x=[*x, *x[::-1]],
                    y=[*high, *low[::-1]],
                    fill="toself",
                    fillcolor=color,
                    opacity=0.15,
                    line={"width": 0},
                    hoverinfo="skip",
                    showlegend=False,
                    legendgroup=strategy,
                    **place,
                )
            fig.add_scatter(
                x=x,
                y=middle,
                name=strategy,
                legendgroup=strategy,
                showlegend=strategy not in shown,
                line={"color": color, "width": 3 if strategy == "ours" else 1.6},
                mode="lines",
                **place,
            )
            shown.add(strategy)
        fig.add_hline(y=1 - REACHED, line={"color": "#8A94A0", "width": 1, "dash": "dot"}, **place)
        longest = max(len(r["shares"]) for r in own)
        fig.update_xaxes(range=[0, min(_MOST_SHOWN, longest)], title="launches", **place)
    fig.update_yaxes(
        type="log",
        range=[math.log10(FLOOR), 0],
        tickvals=[1, 0.1, 0.01, 0.001],
        ticktext=["100 %", "10 %", "1 %", "0.1 %"],
        gridcolor="#E8EAED",
    )
    fig.update_xaxes(gridcolor="#E8EAED", rangemode="tozero")
    fig.update_layout(
        template="plotly_white",
        font={"family": "Inter, Segoe UI, Helvetica, Arial, sans-serif", "size": 13},
        title={
            "text": "<b>Hypervolume still missing</b><br>"
            '<span style="font-size: 12px">medians of replays, bands: quartiles; '
            "dotted: 99 % reached</span>",
            "font": {"size": 18},
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 24},
        },
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1 - 78 / (190 + 280 * rows),
            "yref": "container",
            "yanchor": "top",
        },
        height=190 + 280 * rows,
        margin={"t": 150, "l": 70, "r": 24, "b": 60},
    )
    return fig


def _curves(shares: Sequence[Sequence[float]]) -> np.ndarray:
    """Quartiles of what is missing, 3 × launches; an ended replay learns nothing more."""
    longest = max(map(len, shares))
    missing = [[1 - x for x in s] + [1 - s[-1]] * (longest - len(s)) for s in shares]
    return np.maximum(np.quantile(missing, [0.25, 0.5, 0.75], axis=0), FLOOR)


def draw(records: Sequence[Record], page: Path) -> None:
    """Write HTML, and PNG where a Chromium is found."""
    from autotune.output.figures.browser import write_html, write_png

    fig = figure(records)
    write_html(fig, page, "Hypervolume still missing")
    picture = page.with_suffix(".png")
    print(page, picture if write_png(fig, picture) else "(no Chromium, no PNG)")
