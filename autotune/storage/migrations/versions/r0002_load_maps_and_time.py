"""Tables of load maps, and of where the time of a launch went.

An autotune from before there were revisions made these tables whenever it wrote to a database, so
each of them may be there already.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

# PostgreSQL's own INTEGER has 32 bits, and its JSON knows no NaN.
INTEGER = sa.Integer().with_variant(sa.BigInteger(), "postgresql")
JSON = sa.JSON().with_variant(sa.Text(), "postgresql")


def upgrade() -> None:
    """Make the missing ones of the tables."""
    there = set(sa.inspect(op.get_bind()).get_table_names())
    for name, columns in _tables().items():
        if name not in there:
            op.create_table(name, *columns)


def _launch(*, key: bool) -> sa.Column[str]:
    to = sa.ForeignKey("autotune_launches.launch_id")
    return sa.Column("launch_id", sa.String, to, primary_key=key, index=not key, nullable=False)


def _tables() -> dict[str, list[sa.Column]]:  # type: ignore[type-arg]
    """Return new columns of each table, because a column belongs to one table object."""
    return {
        "autotune_map_points": [
            sa.Column("id", INTEGER, primary_key=True),
            sa.Column("study", sa.String, index=True, nullable=False),
            sa.Column("setting", JSON, nullable=False),
            sa.Column("n", INTEGER, nullable=False),
            sa.Column("schedule", JSON),
            sa.Column("created_at", sa.Double, nullable=False),
        ],
        "autotune_loads": [
            sa.Column("id", INTEGER, primary_key=True),
            _launch(key=False),
            sa.Column(
                "point",
                INTEGER,
                sa.ForeignKey("autotune_map_points.id"),
                index=True,
                nullable=False,
            ),
            sa.Column("concurrency", INTEGER, nullable=False),
            sa.Column("part", INTEGER, nullable=False),
            sa.Column("phase", sa.String, nullable=False),
            sa.Column("requests", INTEGER, nullable=False),
            sa.Column("stats", JSON, nullable=False),
            sa.Column("values", JSON, nullable=False),
            sa.Column("intervals", JSON, nullable=False),
            sa.Column("quality", JSON, nullable=False),
            sa.Column("measured_at", sa.Double, nullable=False),
        ],
        "autotune_stages": [
            _launch(key=True),
            sa.Column("seconds", JSON, nullable=False),
            sa.Column("imports", JSON, nullable=False),
        ],
        "autotune_compile_cache": [
            _launch(key=True),
            sa.Column("use", sa.String, nullable=False),
            sa.Column("folder", sa.String),
        ],
    }
