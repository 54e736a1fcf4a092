"""Fixtures: upstreams and collectors that end with the test."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from collector_fixtures import collector, upstream

__all__ = ["collector", "upstream"]
