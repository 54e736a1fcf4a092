"""Cron's five fields as Kubernetes reads them: a schedule that a CronJob would refuse is refused before it is written."""

from __future__ import annotations

import re
from dataclasses import dataclass

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Field:
    """`names`: words that stand for `low`, `low` + 1, …"""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()

    def number(self, text: str) -> int | None:
        """The value that a number or a name stands for; None where it is neither or out of range."""
        if text.upper() in self.names:
            return self.low + self.names.index(text.upper())
        value = int(text) if re.fullmatch(r"[0-9]{1,4}", text) else -1
        return value if self.low <= value <= self.high else None


_FIELDS = (
    _Field(name="minute", low=0, high=59),
    _Field(name="hour", low=0, high=23),
    _Field(name="day", low=1, high=31),
    _Field(name="month", low=1, high=12, names=_MONTHS),
    _Field(name="weekday", low=0, high=6, names=_WEEKDAYS),
)


def schedule_fault(schedule: str) -> str | None:
    """What is wrong with a schedule, in words; None: nothing.

    A field is a list (`,`) of `*`, a value or a range `a-b`, each with or without a step `/n`; months and weekdays have names.
    Weekdays are 0 (Sunday) to 6: Kubernetes refuses 7.
    """
    words = re.split(" +", schedule)
    if len(words) != len(_FIELDS):
        return "cron's five fields are expected (minute, hour, day, month, weekday; UTC)"
    for field, word in zip(_FIELDS, words, strict=True):
        for part in word.split(","):
            if not _is_valid(field, part):
                named = f" or {field.names[0]} to {field.names[-1]}" if field.names else ""
                return f"the {field.name} {part!r} is none: {field.low} to {field.high}{named}, *, a range 1-3 or a step */2"
    return None


def _is_valid(field: _Field, part: str) -> bool:
    values, slash, step = part.partition("/")
    if slash and not re.fullmatch(r"0*[1-9][0-9]{0,3}", step):
        return False
    if values in {"*", "?"}:
        return True
    first, dash, last = values.partition("-")
    low, high = field.number(first), field.number(last) if dash else None
    return low is not None and (not dash or (high is not None and low <= high))
