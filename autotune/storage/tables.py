"""Maps the rows of :mod:`autotune.storage.schema` to tables, to write them and to migrate."""

from __future__ import annotations

import json
from dataclasses import Field, fields
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    TypeDecorator,
)
from sqlalchemy.orm import registry
from sqlalchemy.types import TypeEngine

from autotune.storage.reading import Row, is_json
from autotune.storage.schema import KINDS


class _JsonText(TypeDecorator[Any]):
    """JSON as text: PostgreSQL's own type refuses NaN and infinity, which Python writes."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """Return the text of a value; None stays NULL."""
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """Return the value of a text."""
        return None if value is None else json.loads(value)


_TYPES: dict[str, TypeEngine[Any]] = {
    "str": String(),
    "int": Integer().with_variant(BigInteger(), "postgresql"),
    "float": Double(),
    "bytes": LargeBinary(),
}
_JSON = JSON(none_as_null=True).with_variant(_JsonText(), "postgresql")
_registry = registry()


def _column(f: Field[Any]) -> Column[Any]:
    about = dict(f.metadata)
    keys = [ForeignKey(about.pop("foreign_key"))] if "foreign_key" in about else []
    declared = str(f.type)
    kind: TypeEngine[Any] = _JSON if is_json(f) else _TYPES[declared.split(" | ")[0]]
    return Column(f.name, kind, *keys, nullable=declared.endswith("| None"), **about)


def _map(kind: type[Row]) -> None:
    table = Table(kind.__tablename__, _registry.metadata, *map(_column, fields(kind)))
    _registry.map_imperatively(kind, table)


METADATA = _registry.metadata
for _kind in KINDS:
    _map(_kind)
