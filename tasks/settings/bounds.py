"""What one value of a settings file may be: types with their bounds, and the base of every section."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.common.parameters import Unexpected
from tasks.shown.wording import sentence

MOST = 2**31 - 1
"""The largest whole number that every part of the pipeline can take, NumPy's and scikit-learn's seeds among them."""
Share = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=MOST)]
Several = Annotated[int, Field(ge=2, le=MOST)]
Bins = Annotated[int, Field(ge=3, le=65536)]
Seed = Annotated[int, Field(ge=0, le=MOST)]
# What is divided or multiplied by one of these must stay a number in float32.
Scale = Annotated[float, Field(ge=1e-6, le=1e6)]
Ridge = Annotated[float, Field(ge=1e-12, le=1e3)]
Temperature = Annotated[float, Field(ge=0.01, le=1000)]
Clip = Annotated[float, Field(ge=1e-6, le=1e9)]
Rate = Annotated[float, Field(ge=1e-8, le=1)]
"""A learning rate of Adam, whose steps are as large as it: above 1 every weight is lost in the first one."""


class Section(BaseModel):
    """A section of params.yaml: no other fields than these, no text where a number belongs."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def expect_distinct(values: Sequence[Any], place: str) -> None:
    """Refuse a list in which a value stands twice."""
    twice = [value for index, value in enumerate(values) if value in values[:index]]
    if twice:
        raise ValueError(f"Expected each value of {place} once, got {twice[0]!r} twice")


Kind = TypeVar("Kind", bound=Section)


def validated(kind: type[Kind], values: Mapping[str, Any], file: str) -> Kind:
    """Return a settings file's values, checked.

    Raises:
        Unexpected: With one sentence on the first value that is missing, unknown or out of bounds.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise Unexpected(sentence(error.errors(), values, kind.model_json_schema(), file)) from None
