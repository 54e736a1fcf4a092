"""The container file and the Kustomize set for collectors in a cluster: plain files, copied out for the user to edit."""

from __future__ import annotations

from importlib import resources

FILES = ("Containerfile", "kustomization.yaml", "collector.yaml", "ship.yaml")


def kustomize_files() -> dict[str, str]:
    """File name → text, as shipped."""
    folder = resources.files("evalpipe.rollout").joinpath("kubernetes")
    return {name: folder.joinpath(name).read_text("utf-8") for name in FILES}
