"""Accepted drafts of single requests, as vLLM 0.29 and later tell them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

# PostgreSQL's own INTEGER has 32 bits, and its JSON knows no NaN.
INTEGER = sa.Integer().with_variant(sa.BigInteger(), "postgresql")
JSON = sa.JSON().with_variant(sa.Text(), "postgresql")


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "autotune_request_acceptance",
        sa.Column("id", INTEGER, primary_key=True),
        sa.Column(
            "launch_id",
            sa.String,
            sa.ForeignKey("autotune_launches.launch_id"),
            index=True,
            nullable=False,
        ),
        sa.Column("phase", sa.String, nullable=False),
        sa.Column("index", INTEGER, nullable=False),
        sa.Column("category", sa.String),
        sa.Column("histogram", JSON, nullable=False),
        sa.Column("drafted", INTEGER),
        sa.Column("by_step", sa.LargeBinary, nullable=False),
    )
