"""Tables of autotune 0.1: studies, launches, requests, events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables of an empty database."""
    meta = op.create_table("autotune_meta", sa.Column("schema", sa.Integer, primary_key=True))
    op.bulk_insert(meta, [{"schema": 2}])
    op.create_table(
        "autotune_studies",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("path", sa.String, nullable=False),
        sa.Column("yaml", sa.String, nullable=False),
        sa.Column("fingerprint", sa.String, nullable=False),
        sa.Column("seed", sa.Integer, nullable=False),
        sa.Column("wanted", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("autotune_version", sa.String, nullable=False),
    )
    _launches()
    op.create_table(
        "autotune_requests",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column(
            "launch_id",
            sa.String,
            sa.ForeignKey("autotune_launches.launch_id"),
            index=True,
            nullable=False,
        ),
        sa.Column("phase", sa.String, nullable=False),
        sa.Column("index", sa.Integer, nullable=False),
        sa.Column("intended", sa.Double, nullable=False),
        sa.Column("start", sa.Double, nullable=False),
        sa.Column("ttft", sa.Double),
        sa.Column("end", sa.Double, nullable=False),
        sa.Column("prompt_tokens", sa.Integer),
        sa.Column("output_tokens", sa.Integer),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("error", sa.String),
        sa.Column("chunks", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "autotune_events",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("study", sa.String, index=True, nullable=False),
        sa.Column("trial", sa.Integer),
        sa.Column("launch_id", sa.String),
        sa.Column("what", sa.String, nullable=False),
    )


def _launches() -> None:
    op.create_table(
        "autotune_launches",
        sa.Column("launch_id", sa.String, primary_key=True),
        sa.Column("study", sa.String, index=True, nullable=False),
        sa.Column("trial", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("argv", sa.JSON, nullable=False),
        sa.Column("env", sa.JSON, nullable=False),
        sa.Column("machine", sa.JSON, nullable=False),
        sa.Column("port", sa.Integer, nullable=False),
        sa.Column("log_path", sa.String, nullable=False),
        sa.Column("boot_id", sa.String, nullable=False),
        sa.Column("identity", sa.JSON),
        sa.Column("vllm_version", sa.String),
        sa.Column("planned_at", sa.Double, nullable=False),
        sa.Column("ready_at", sa.Double),
        sa.Column("measured_at", sa.Double),
        sa.Column("ended_at", sa.Double),
        sa.Column("exit_code", sa.Integer),
        sa.Column("killed", sa.Integer),
        sa.Column("failure_kind", sa.String),
        sa.Column("failure_reason", sa.String),
        sa.Column("evidence", sa.JSON),
        sa.Column("log_tail", sa.String),
        sa.Column("stats", sa.JSON),
        sa.Column("values", sa.JSON),
        sa.Column("intervals", sa.JSON),
        sa.Column("quality", sa.JSON),
    )
