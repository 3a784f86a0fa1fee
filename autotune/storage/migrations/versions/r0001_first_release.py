"""Tables of autotune 0.1: studies, launches, requests, events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# PostgreSQL's own INTEGER has 32 bits, and its JSON knows no NaN.
INTEGER = sa.Integer().with_variant(sa.BigInteger(), "postgresql")
JSON = sa.JSON().with_variant(sa.Text(), "postgresql")


def upgrade() -> None:
    """Make the tables of an empty database."""
    meta = op.create_table("autotune_meta", sa.Column("schema", INTEGER, primary_key=True))
    op.bulk_insert(meta, [{"schema": 2}])
    op.create_table(
        "autotune_studies",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("path", sa.String, nullable=False),
        sa.Column("yaml", sa.String, nullable=False),
        sa.Column("fingerprint", sa.String, nullable=False),
        sa.Column("seed", INTEGER, nullable=False),
        sa.Column("wanted", INTEGER, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("autotune_version", sa.String, nullable=False),
    )
    _launches()
    op.create_table(
        "autotune_requests",
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
        sa.Column("intended", sa.Double, nullable=False),
        sa.Column("start", sa.Double, nullable=False),
        sa.Column("ttft", sa.Double),
        sa.Column("end", sa.Double, nullable=False),
        sa.Column("prompt_tokens", INTEGER),
        sa.Column("output_tokens", INTEGER),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("error", sa.String),
        sa.Column("chunks", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "autotune_events",
        sa.Column("id", INTEGER, primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("study", sa.String, index=True, nullable=False),
        sa.Column("trial", INTEGER),
        sa.Column("launch_id", sa.String),
        sa.Column("what", sa.String, nullable=False),
    )


def _launches() -> None:
    op.create_table(
        "autotune_launches",
        sa.Column("launch_id", sa.String, primary_key=True),
        sa.Column("study", sa.String, index=True, nullable=False),
        sa.Column("trial", INTEGER, nullable=False),
        sa.Column("attempt", INTEGER, nullable=False),
        sa.Column("argv", JSON, nullable=False),
        sa.Column("env", JSON, nullable=False),
        sa.Column("machine", JSON, nullable=False),
        sa.Column("port", INTEGER, nullable=False),
        sa.Column("log_path", sa.String, nullable=False),
        sa.Column("boot_id", sa.String, nullable=False),
        sa.Column("identity", JSON),
        sa.Column("vllm_version", sa.String),
        sa.Column("planned_at", sa.Double, nullable=False),
        sa.Column("ready_at", sa.Double),
        sa.Column("measured_at", sa.Double),
        sa.Column("ended_at", sa.Double),
        sa.Column("exit_code", INTEGER),
        sa.Column("killed", INTEGER),
        sa.Column("failure_kind", sa.String),
        sa.Column("failure_reason", sa.String),
        sa.Column("evidence", JSON),
        sa.Column("log_tail", sa.String),
        sa.Column("stats", JSON),
        sa.Column("values", JSON),
        sa.Column("intervals", JSON),
        sa.Column("quality", JSON),
    )
