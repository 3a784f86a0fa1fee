"""The lease counts what its holder wrote, so that a commit without an answer can be looked up."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

# PostgreSQL's own INTEGER has 32 bits.
INTEGER = sa.Integer().with_variant(sa.BigInteger(), "postgresql")


def upgrade() -> None:
    """Add the column."""
    with op.batch_alter_table("autotune_lease") as lease:
        lease.add_column(sa.Column("written", INTEGER))
