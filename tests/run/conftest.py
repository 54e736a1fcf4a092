"""The builders of the judge's and the store's tests are shared."""

import sys
from pathlib import Path

for folder in ("../judging", "../store"):
    sys.path.insert(0, str((Path(__file__).parent / folder).resolve()))
