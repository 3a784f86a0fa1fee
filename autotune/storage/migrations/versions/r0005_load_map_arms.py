"""Load sweeps compare more than values of n: which way a point is, and its repeated launches."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

# PostgreSQL's own INTEGER has 32 bits.
INTEGER = sa.Integer().with_variant(sa.BigInteger(), "postgresql")


def upgrade() -> None:
    """Add the columns; a point of before is a fixed n or a schedule, launched once."""
    with op.batch_alter_table("autotune_map_points") as points:
        points.add_column(sa.Column("way", sa.String))
        points.add_column(sa.Column("arm", sa.String))
        points.add_column(sa.Column("repeat", INTEGER))
