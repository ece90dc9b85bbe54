"""What `prune.budget` may say: a kind of cost, the most of it, and what that kind needs to be told."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from pruning.core import options
from pruning.core.units import byte_count
from tasks.settings.bounds import MOST, Count, Section, Several


class BudgetOf(Section):
    """What the kept neurons may cost together.

    `target` is for `memory`, the next three for `latency`, and `windows` of the calibration text for what firing rates
    decide.
    """

    kind: options.BudgetKind
    value: Annotated[float, Field(gt=0, le=1e18)]
    target: options.Numbers | None = None
    batch: Count | None = None
    repeats: Annotated[int, Field(ge=10, le=MOST)] | None = None
    points: Several | None = None
    windows: Several | None = None

    @model_validator(mode="before")
    @classmethod
    def reads_bytes(cls, values: Any) -> Any:
        """Read memory that is told with a unit, such as 512KiB."""
        if isinstance(values, Mapping) and values.get("kind") == "memory" and isinstance(values.get("value"), str):
            return {**values, "value": byte_count(values["value"])}
        return values

    @model_validator(mode="after")
    def says_how_to_measure(self) -> "BudgetOf":
        """Refuse what is measured without how to measure it, and another kind with it or with a target."""
        missing = [name for name in ("batch", "repeats", "points") if getattr(self, name) is None]
        if missing and self.kind == "latency":
            raise ValueError(f"Expected batch, repeats and points for a budget of latency, got no {missing[0]}")
        if len(missing) < 3 and self.kind != "latency":
            raise ValueError(f"Expected kind and value alone for a budget of {self.kind}, got more")
        if self.windows is None and self.kind in options.FIRING:
            raise ValueError(f"Expected windows to measure firing rates on for a budget of {self.kind}, got none")
        if self.windows is not None and self.kind not in options.FIRING:
            raise ValueError(
                f"Expected windows for a budget of {' or '.join(options.FIRING)} alone, got them for {self.kind}"
            )
        if self.target is not None and self.kind != "memory":
            raise ValueError(f"Expected target for a budget of memory alone, got one for {self.kind}")
        return self
