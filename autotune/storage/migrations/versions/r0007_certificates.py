"""Certificates that answers are the same with speculation, and the answers compared."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

# PostgreSQL's own INTEGER has 32 bits, and its JSON knows no NaN.
INTEGER = sa.Integer().with_variant(sa.BigInteger(), "postgresql")
JSON = sa.JSON().with_variant(sa.Text(), "postgresql")


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "autotune_certificates",
        sa.Column("id", INTEGER, primary_key=True),
        sa.Column("study", sa.String, index=True, nullable=False),
        sa.Column("trial", INTEGER, nullable=False),
        sa.Column("setting", JSON, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("ended_at", sa.Double),
        sa.Column("verdict", sa.String),
        sa.Column("judgement", JSON),
    )
    op.create_table(
        "autotune_answers",
        sa.Column("id", INTEGER, primary_key=True),
        sa.Column(
            "certificate",
            INTEGER,
            sa.ForeignKey("autotune_certificates.id"),
            index=True,
            nullable=False,
        ),
        sa.Column(
            "launch_id",
            sa.String,
            sa.ForeignKey("autotune_launches.launch_id"),
            index=True,
            nullable=False,
        ),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("index", INTEGER, nullable=False),
        sa.Column("prompt_ids", sa.LargeBinary, nullable=False),
        sa.Column("token_ids", sa.LargeBinary, nullable=False),
        sa.Column("text", sa.LargeBinary, nullable=False),
        sa.Column("stop", sa.String, nullable=False),
        sa.Column("logprobs", sa.LargeBinary),
        sa.Column("best", sa.LargeBinary),
    )
