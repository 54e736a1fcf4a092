"""Which value of a log's own column is which arm."""

from __future__ import annotations

from collections.abc import Sequence

from evalpipe.core.traffic import Arm
from evalpipe.errors import ConfigError
from evalpipe.providers.models import same_model

_CONTROL = frozenset({"control", "a", "old", "baseline", "base", "current", "production", "prod", "champion", "0",
    "off", "before", "incumbent", "false", "ctrl", "c", "existing", "default", "original"})  # fmt: skip
_TREATMENT = frozenset({"treatment", "b", "new", "candidate", "challenger", "1", "on", "after", "test", "true", "t",
    "variant", "treated", "experiment", "exp", "variation"})  # fmt: skip


class Arms:
    """Values are told apart by their words, by the models of the configuration, else the first one seen is control's.

    `named`: (control's value, treatment's), as the user gave them; any other value is then of no arm. `first`: the
    arm of the first value where nothing else says it.
    """

    def __init__(
        self,
        named: Sequence[str] = (),
        models: tuple[str | None, str | None] = (None, None),
        *,
        first: Arm = Arm.CONTROL,
    ) -> None:
        if named and len(named) != 2:
            raise ConfigError(
                f"--arms {','.join(named)}: give two values, control's and treatment's, with a comma between"
            )
        self._named = list(named)
        self._models = models
        self._first = first
        self.seen: dict[str, Arm | None] = {}

    def of(self, value: str) -> Arm | None:
        """The arm of rows with this value; None where it is a third one."""
        if value not in self.seen:
            self.seen[value] = self._told(value)
        return self.seen[value]

    def _told(self, value: str) -> Arm | None:
        if self._named:
            return dict(zip(self._named, Arm, strict=True)).get(value)
        taken = {arm for arm in self.seen.values() if arm is not None}
        word = value.strip().lower()
        wanted = Arm.CONTROL if word in _CONTROL else Arm.TREATMENT if word in _TREATMENT else None
        if wanted is None:
            wanted = next(
                (arm for arm, model in zip(Arm, self._models, strict=True) if model and same_model(model, value)), None
            )
        if wanted is None:
            other = Arm.TREATMENT if self._first is Arm.CONTROL else Arm.CONTROL
            wanted = self._first if self._first not in taken else other
        return None if wanted in taken else wanted

    def lines(self) -> list[str]:
        """Which value is which arm, for people."""
        return [f"{value!r} is {arm.value}" for value, arm in self.seen.items() if arm is not None]
