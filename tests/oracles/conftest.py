"""The `case` fixture of the oracle tests; the counts per file are printed by tests/conftest.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from oracle_cases import Case


@pytest.fixture
def case(request: pytest.FixtureRequest, record_property: Any) -> Iterator[Case]:
    name, document, data = request.param
    current = Case(name, document, data)
    yield current
    current.finish()
    record_property("oracle", (name, current.n_compared))
