"""The proxy on the served path, and the process that sends the treatment copies."""

from __future__ import annotations


def is_compiled() -> bool:
    """Whether the path of every request runs compiled, as in wheels, or interpreted, as from sources (hatch_build.py)."""
    from evalpipe.http1 import headers

    return not (headers.__file__ or "").endswith(".py")
