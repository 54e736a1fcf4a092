"""Builders of the other rooms' tests, for these and for the processes they record."""

import sys
from pathlib import Path

for folder in (".", "../store", "../judging", "../collector"):
    sys.path.insert(0, str((Path(__file__).parent / folder).resolve()))
