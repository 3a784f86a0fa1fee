"""Maps the rows of :mod:`autotune.storage.schema` to tables, to write them and to migrate."""

from __future__ import annotations

from dataclasses import Field, fields
from typing import Any

from sqlalchemy import JSON, Column, Double, ForeignKey, Integer, LargeBinary, String, Table
from sqlalchemy.orm import registry

from autotune.storage.reading import Row, is_json
from autotune.storage.schema import KINDS

_TYPES = {"str": String, "int": Integer, "float": Double, "bytes": LargeBinary}
_registry = registry()


def _column(f: Field[Any]) -> Column[Any]:
    about = dict(f.metadata)
    keys = [ForeignKey(about.pop("foreign_key"))] if "foreign_key" in about else []
    declared = str(f.type)
    kind = JSON(none_as_null=True) if is_json(f) else _TYPES[declared.split(" | ")[0]]()
    return Column(f.name, kind, *keys, nullable=declared.endswith("| None"), **about)


def _map(kind: type[Row]) -> None:
    table = Table(kind.__tablename__, _registry.metadata, *map(_column, fields(kind)))
    _registry.map_imperatively(kind, table)


METADATA = _registry.metadata
for _kind in KINDS:
    _map(_kind)
