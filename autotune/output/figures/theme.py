"""Colors and fonts that all figures have in common.

The colors of data are Okabe and Ito's, which color-blind people can tell apart; shape and position
say the same once more.
"""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
GRAY = "#8A94A0"


@dataclass(frozen=True)
class Theme:
    """Colors of everything but data, for a light or a dark page.

    Attributes:
        ink: Color of text, and of marks that would be black.
        grid: Color of grid lines.
        axis: Color of axes and their ticks.
        page: Background of the page, and rims of markers.
        veil: Background of labels on the plot: the page, seen through.
        strip: Background of a strip apart from the plot.
        front: Text in the front's color.
        baseline: Text in the baseline's color.
    """

    ink: str
    grid: str
    axis: str
    page: str
    veil: str
    strip: str
    front: str
    baseline: str


# Text takes more contrast than a marker: 4.5 : 1 against the page (WCAG 2.2, 1.4.3).
LIGHT = Theme(
    ink="#333333",
    grid="#E8EAED",
    axis="#9AA0A6",
    page="#FFFFFF",
    veil="rgba(255, 255, 255, 0.7)",
    strip="#F1F3F4",
    front=BLUE,
    baseline="#B34F00",
)
DARK = Theme(
    ink="#E3E6EA",
    grid="#31363C",
    axis="#7B838C",
    page="#15181B",
    veil="rgba(21, 24, 27, 0.7)",
    strip="#22272C",
    front="#6DB8EA",
    baseline="#F39A5B",
)


def template(theme: Theme) -> go.layout.Template:
    """Return the layout that all figures have in common."""
    axis = {
        "gridcolor": theme.grid,
        "linecolor": theme.axis,
        "tickcolor": theme.axis,
        "ticks": "outside",
        "zeroline": False,
        "automargin": True,
    }
    return go.layout.Template(
        layout={
            "font": {
                "family": "Inter, Segoe UI, Helvetica, Arial, sans-serif",
                "size": 13,
                "color": theme.ink,
            },
            "title": {"x": 0, "xref": "paper", "font": {"size": 18}},
            "paper_bgcolor": theme.page,
            "plot_bgcolor": theme.page,
            "hoverlabel": {
                "align": "left",
                "bgcolor": theme.page,
                "bordercolor": theme.axis,
                "font": {"color": theme.ink},
            },
            "xaxis": axis,
            "yaxis": axis,
            "colorway": [BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", theme.ink],
            "margin": {"l": 78, "r": 24, "t": 70, "b": 62},
        }
    )
