"""Whether params.yaml's sections agree with one another, checked before any long work starts."""

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from tasks.common.parameters import settings_of
from tasks.settings.bounds import validated
from tasks.settings.choosing import check_measures
from tasks.settings.sections import Sections
from tasks.shown.wording import nearest


class Parameters(Sections):
    """All of params.yaml, in agreement."""

    @model_validator(mode="after")
    def oracle_reads_two_windows(self) -> "Parameters":
        """Refuse a budget of tokens that one window of the calibration holds."""
        window = self.calibration.batch * self.calibration.bptt
        if not self.model.source and self.oracle.tokens <= window:
            raise ValueError(
                f"Expected oracle.tokens above calibration.batch × calibration.bptt ({window}), for two windows to "
                f"measure on, got {self.oracle.tokens}"
            )
        return self

    @model_validator(mode="after")
    def dropout_is_the_models(self) -> "Parameters":
        """Refuse a dropout for a model of the user's own, whose code says it."""
        if self.model.source and self.finetune.dropout is not None:
            raise ValueError(
                f"Expected finetune.dropout: null with model.source, as a model of your own says its dropout itself, "
                f"got {self.finetune.dropout:g}"
            )
        return self

    @model_validator(mode="after")
    def control_exists(self) -> "Parameters":
        """Refuse a control that is no variant."""
        if self.compare.control not in self.variants:
            known = list(self.variants)
            hint = nearest(self.compare.control, known)
            dot = "." if hint else ""
            raise ValueError(f"Expected compare.control to be one of {known}, got {self.compare.control!r}{dot}{hint}")
        return self

    @model_validator(mode="after")
    def variants_agree_with_the_section(self) -> "Parameters":
        """Refuse contradictions between a variant and `prune`, and kinds of neurons that the family has not."""
        section = self.prune.model_dump()
        effective = {f"variants.{n}": settings_of(section, v.model_dump()) for n, v in self.variants.items()}
        for place, settings in {"prune": section, **effective}.items():
            check_measures(settings, place)
            named = [name for name in ("snn_ratio", "quota") if settings[name] is not None]
            if named and self.train.family != "mixed":
                raise ValueError(f"Expected train.family: mixed for {place}.{named[0]}, got {self.train.family}")
        return self


def checked(values: Mapping[str, Any]) -> Parameters:
    """Return params.yaml's values, checked.

    Raises:
        Unexpected: With one sentence on the first value that is missing, unknown or out of bounds.
    """
    return validated(Parameters, values, "params.yaml")
