"""The upstreams and collectors of the collector's tests, for its heavy runs."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "collector"))

from collector_fixtures import collector, upstream

__all__ = ["collector", "upstream"]
