"""A judge's key in what its provider says: taken out before anything is written. Providers repeat keys that they refuse."""

from __future__ import annotations

from typing import Final

from evalpipe.core.secrets import Finder, known_secrets, mask_with, secrets_in, secrets_in_url
from evalpipe.judging.spec import JudgeSpec

_known: Final[set[str]] = set()
"""of the judges this process asks"""


def remember_keys(spec: JudgeSpec, key: str | None) -> None:
    """From now on `masked` takes out the judge's key, and the secrets in its parameters and its address."""
    _known.update(known_secrets([key or "", *secrets_in(spec.params), *secrets_in_url(spec.base_url or "")]))


def masked(text: str) -> str:
    """The text without the keys of the judges that were asked."""
    return mask_with(Finder(_known), text) if _known else text
