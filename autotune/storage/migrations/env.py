"""Run by Alembic; :func:`autotune.storage.migrations.upgrade` gives the connection."""

from __future__ import annotations

from alembic import context

attributes = context.config.attributes
context.configure(
    connection=attributes["connection"],
    version_table=attributes["version_table"],
    render_as_batch=True,
)
context.run_migrations()
