"""What a study optimizes: an objective as a study file names it, with its limits and price."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from autotune.study.keys import Model, Result


class SloSpec(Model):
    """Limits that a good request keeps, all of them, as `vllm bench serve --goodput`."""

    ttft_ms: Result[float | None] = Field(default=None, gt=0, description="most TTFT, ms")
    tpot_ms: Result[float | None] = Field(default=None, gt=0, description="most TPOT, ms")
    e2el_ms: Result[float | None] = Field(default=None, gt=0, description="most E2EL, ms")

    @model_validator(mode="after")
    def _some_limit(self) -> SloSpec:
        if not self.limits():
            raise ValueError(f"needs a limit: {', '.join(SloSpec.model_fields)}")
        return self

    def limits(self) -> dict[str, float]:
        """Return the limits that were given, ms by key."""
        return self.model_dump(exclude_none=True)


class ObjectiveSpec(Model):
    """One objective: a built-in one, or one of your own."""

    name: Result[str] = Field(
        description="of a built-in objective, or of an entry point of the group "
        "`autotune.objectives`; with `file`, the file's name without .py"
    )
    direction: Result[Literal["maximize", "minimize"] | None] = Field(
        default=None, description="without it, the objective's own"
    )
    file: Result[Path | None] = Field(
        default=None,
        description="a Python file with an OBJECTIVE of your own, relative to the study file",
    )
    slo: SloSpec | None = Field(default=None, description="limits of a good request, for goodput")
    usd_per_hour: Result[float | None] = Field(
        default=None, gt=0, description="price of the machine, for cost"
    )

    @model_validator(mode="after")
    def _named_as_its_file(self) -> ObjectiveSpec:
        if self.file is not None and self.name != self.file.stem:
            raise ValueError(f"name must be {self.file.stem}, as the file; or leave it out")
        return self

    @model_serializer(mode="wrap")
    def _without_what_it_lacks(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the keys that the first studies did not know, where they are not set."""
        body: dict[str, Any] = handler(self)
        return {k: v for k, v in body.items() if v is not None or k == "direction"}


def _objective(value: object) -> object:
    """Return an objective as a mapping, with its name."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and isinstance(value.get("file"), str):
        return {"name": Path(value["file"]).stem, **value}
    return value


NamedObjective = Annotated[ObjectiveSpec, BeforeValidator(_objective)]
