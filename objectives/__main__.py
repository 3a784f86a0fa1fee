"""Print all objectives as the Markdown table of ``docs/objectives.md``."""

from __future__ import annotations

import objectives


def table() -> str:
    """Return the table, with one row for each objective, sorted by name."""
    rows = [["name", "unit", "better", "formula", "source"], ["---"] * 5]
    for name in objectives.names():
        o = objectives.get(name)
        more = "more" if o.direction == "maximize" else "less"
        key = f"`{name}`" + (f" (needs `{o.setting}`)" if o.setting else "")
        rows.append([key, o.unit, more, o.formula, o.source])
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in r) + " |" for r in rows)


if __name__ == "__main__":
    print(table())  # noqa: T201
