"""Metrics of the user's own: an SQL expression in the configuration, checked to be read-only, or a Python function."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Literal, cast

from evalpipe.analysis.connection import Connection
from evalpipe.analysis.expressions import check_expression
from evalpipe.analysis.metrics import Metric, custom_metric, metrics
from evalpipe.analysis.settings import CustomMetric, Settings
from evalpipe.errors import ConfigError

NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


def custom_metrics(wanted: Sequence[CustomMetric]) -> list[Metric]:
    """The users' metrics as metrics like all others: a mean per answered request."""
    taken = {item.name for item in metrics()}
    found = []
    for position, one in enumerate(wanted):
        if one.name in taken:
            raise ConfigError(f"metrics.{one.name}: this name is evalpipe's own; choose another")
        if not NAME.fullmatch(one.name):
            raise ConfigError(f"metrics.{one.name}: a name is lower case letters, digits and _, such as my_metric")
        found.append(
            custom_metric(
                one.name,
                label=one.label,
                direction=cast(Literal["lower", "higher"], one.direction),
                unit=one.unit,
                column=_column(position),
            )
        )
    return found


def check_names(settings: Settings) -> None:
    """Every metric that the decision names must exist. Raises ConfigError with the nearest name."""
    known = [item.name for item in metrics()] + [one.name for one in settings.custom]
    asked = [(f"decision.metrics.{name}", name) for name in settings.metrics]
    asked += [(f"decision.primary: {name}", name) for name in settings.primary or ()]
    for where, name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"{where} is no metric; {hint}")


def custom_columns(connection: Connection, wanted: Sequence[CustomMetric]) -> list[tuple[str, str]]:
    """(column, SQL expression over `exchanges`) of each; checked, so that they can be put into a query."""
    columns = []
    for position, one in enumerate(wanted):
        if one.sql is not None:
            check_expression(connection, one.sql, name=f"metrics.{one.name}.sql")
            expression = f"TRY_CAST(({one.sql}\n) AS DOUBLE)"
        else:
            from evalpipe.analysis.functions import function_column

            expression = function_column(connection, one)
        columns.append((_column(position), expression))
    return columns


def _column(position: int) -> str:
    return f"custom_{position}"
