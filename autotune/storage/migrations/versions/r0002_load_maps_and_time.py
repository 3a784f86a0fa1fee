"""Tables of load maps, and of where the time of a launch went.

An autotune from before there were revisions made these tables whenever it wrote to a database, so
each of them may be there already.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make those of the tables that are not there."""
    there = set(sa.inspect(op.get_bind()).get_table_names())
    for name, columns in _tables().items():
        if name not in there:
            op.create_table(name, *columns)


def _launch(*, key: bool) -> sa.Column[str]:
    to = sa.ForeignKey("autotune_launches.launch_id")
    return sa.Column("launch_id", sa.String, to, primary_key=key, index=not key, nullable=False)


def _tables() -> dict[str, list[sa.Column]]:  # type: ignore[type-arg]
    """Return the columns of each table, new ones: a column belongs to one table for good."""
    return {
        "autotune_map_points": [
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("study", sa.String, index=True, nullable=False),
            sa.Column("setting", sa.JSON, nullable=False),
            sa.Column("n", sa.Integer, nullable=False),
            sa.Column("schedule", sa.JSON),
            sa.Column("created_at", sa.Double, nullable=False),
        ],
        "autotune_loads": [
            sa.Column("id", sa.Integer, primary_key=True),
            _launch(key=False),
            sa.Column(
                "point",
                sa.Integer,
                sa.ForeignKey("autotune_map_points.id"),
                index=True,
                nullable=False,
            ),
            sa.Column("concurrency", sa.Integer, nullable=False),
            sa.Column("part", sa.Integer, nullable=False),
            sa.Column("phase", sa.String, nullable=False),
            sa.Column("requests", sa.Integer, nullable=False),
            sa.Column("stats", sa.JSON, nullable=False),
            sa.Column("values", sa.JSON, nullable=False),
            sa.Column("intervals", sa.JSON, nullable=False),
            sa.Column("quality", sa.JSON, nullable=False),
            sa.Column("measured_at", sa.Double, nullable=False),
        ],
        "autotune_stages": [
            _launch(key=True),
            sa.Column("seconds", sa.JSON, nullable=False),
            sa.Column("imports", sa.JSON, nullable=False),
        ],
        "autotune_compile_cache": [
            _launch(key=True),
            sa.Column("use", sa.String, nullable=False),
            sa.Column("folder", sa.String),
        ],
    }
