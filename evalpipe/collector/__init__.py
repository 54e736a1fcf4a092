"""The proxy on the served path, and the process that sends the treatment copies."""


def is_compiled() -> bool:
    """Whether the road of every request runs compiled, as in wheels, or interpreted, as from sources (.build/compile.py)."""
    from evalpipe.collector import heads

    return not (heads.__file__ or "").endswith(".py")
