"""The two arms by the names a reader knows them by: their models, or, where both are one model, which set-up is meant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evalpipe.report.sanitize import one_line

LONGEST_NAME = 48
"""characters of a model's name in a headline"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmNames:
    """How both arms are named in sentences: `control` is what users get today."""

    control: str
    treatment: str

    def title(self, recommendation: str) -> str:
        """The recommendation as a manager says it: "Keep gpt-4o; do not switch to gpt-4o-mini yet"."""
        if recommendation == "ship":
            return f"Switch from {self.control} to {self.treatment}"
        if recommendation == "keep":
            return f"Keep {self.control}; do not switch to {self.treatment}"
        if recommendation == "collect_more":
            return f"Keep {self.control}; do not switch to {self.treatment} yet"
        return f"No decision on {self.treatment} yet: keep {self.control}"


def arm_names(provenance: Mapping[str, Any]) -> ArmNames:
    """The names of the models, where the log records them and they differ. `provenance`: of the analysis."""
    control, treatment = (_model(provenance, arm) for arm in ("control", "treatment"))
    if control and control == treatment:
        return ArmNames(control=f"the present set-up of {control}", treatment="the new one")
    return ArmNames(control=control or "the present model", treatment=treatment or "the new model")


def _model(provenance: Mapping[str, Any], arm: str) -> str:
    arms = provenance.get("arms")
    about = arms.get(arm) if isinstance(arms, dict) else None
    if not isinstance(about, dict):
        return ""
    found = about.get("models") or about.get("model") or []
    names = [found] if isinstance(found, str) else [str(name) for name in found]
    if not names:
        expected = about.get("expected")
        names = [str(expected["model"])] if isinstance(expected, dict) and expected.get("model") else []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{one_line(names[0], LONGEST_NAME)}{more}" if names else ""
