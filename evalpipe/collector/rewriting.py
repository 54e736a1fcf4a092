"""Where `rewrite = true`: the served request with the arm's model, parameters and system prompt written in."""

from __future__ import annotations

from evalpipe.collector.settings import ArmSettings
from evalpipe.providers.base import NotShadowableError
from evalpipe.providers.registry import speaks
from evalpipe.providers.translate.request import render_treatment_request


def rewrite(endpoint: str, body: bytes, arm: ArmSettings) -> bytes:
    """The body for the arm. A request nobody can read goes out as it came: the provider says what is wrong with it."""
    if not speaks(arm.provider, endpoint):
        return body
    try:
        return render_treatment_request(
            endpoint,
            body,
            provider=arm.provider,
            model=arm.model,
            params=arm.params,
            drop=arm.drop,
            system_prompt=arm.system_prompt,
            served=True,
        ).body
    except NotShadowableError:
        return body
