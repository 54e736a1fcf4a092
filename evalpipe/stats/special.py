"""SciPy's special functions, imported when the first one is used.

The import takes a fifth of a second, more than anything else that commands like `load` and `judge` would wait for when they
start, and most of those commands compute none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scipy.special import bdtr, betaln, chdtrc, gammaln, lambertw, logsumexp, ndtr, ndtri, stdtr, stdtrit

__all__ = ["bdtr", "betaln", "chdtrc", "gammaln", "lambertw", "logsumexp", "ndtr", "ndtri", "stdtr", "stdtrit"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import scipy.special

    found = globals()[name] = getattr(scipy.special, name)
    return found
