"""The lease of a database, the workers that launch for its holder, and who launched what."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

# PostgreSQL's own INTEGER has 32 bits, and its JSON knows no NaN.
INTEGER = sa.Integer().with_variant(sa.BigInteger(), "postgresql")
JSON = sa.JSON().with_variant(sa.Text(), "postgresql")


def upgrade() -> None:
    """Add the tables and columns; an autotune that knows no revisions refuses the database then."""
    op.create_table(
        "autotune_lease",
        sa.Column("id", INTEGER, primary_key=True),
        sa.Column("epoch", INTEGER, nullable=False),
        sa.Column("owner", sa.String),
        sa.Column("host", sa.String),
        sa.Column("pid", INTEGER),
        sa.Column("taken_at", sa.Double),
        sa.Column("expires_at", sa.Double),
    )
    op.create_table(
        "autotune_workers",
        sa.Column("id", INTEGER, primary_key=True),
        sa.Column("lease_epoch", INTEGER, index=True, nullable=False),
        sa.Column("host", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("slot", JSON),
        sa.Column("joined_at", sa.Double, nullable=False),
        sa.Column("seen_at", sa.Double),
        sa.Column("ended_at", sa.Double),
    )
    with op.batch_alter_table("autotune_launches") as launches:
        launches.add_column(sa.Column("host", sa.String))
        launches.add_column(sa.Column("worker", sa.String))
        launches.add_column(sa.Column("lease_epoch", INTEGER))
    op.execute("UPDATE autotune_meta SET schema = 3")
