"""Names and addresses that go into manifests, checked as Kubernetes and Istio check them (RFC 1123)."""

from __future__ import annotations

import re

from evalpipe.errors import ConfigError

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = rf"{_LABEL}(?:\.{_LABEL})*"
_LONGEST_NAME = 253
"""characters of a DNS name"""


def require_label(option: str, value: str) -> None:
    """Raises ConfigError where `value` is no DNS-1123 label: the name of a namespace or of a Deployment that gets services."""
    if re.fullmatch(_LABEL, value) is None:
        raise ConfigError(
            f"{option} {value!r}: a DNS-1123 label is expected: 1 to 63 small letters, digits and '-', which it neither begins "
            "nor ends with"
        )


def require_service(option: str, value: str) -> None:
    """Raises ConfigError where `value` is no service, with or without its namespace and domain (`evalpipe.prod.svc`)."""
    if not _is_name(value):
        raise ConfigError(
            f"{option} {value!r}: a service is expected, such as evalpipe or evalpipe.prod: DNS-1123 labels (1 to 63 small "
            "letters, digits and '-') with dots between"
        )


def require_host(option: str, value: str) -> None:
    """Raises ConfigError where `value` is no host of a VirtualService: a DNS name, also with `*.` before it, or `*`."""
    if value != "*" and not _is_name(value.removeprefix("*.")):
        raise ConfigError(
            f"{option} {value!r}: a DNS name is expected, such as llm.example.internal or *.example.internal"
        )


def require_gateway(option: str, value: str) -> None:
    """Raises ConfigError where `value` is no gateway of a VirtualService: NAME, NAMESPACE/NAME or mesh."""
    namespace, slash, name = value.rpartition("/")
    if not _is_name(name) or (slash and re.fullmatch(_LABEL, namespace) is None):
        raise ConfigError(f"{option} {value!r}: a gateway is expected, such as edge or istio-system/edge")


def require_http(option: str, value: str) -> None:
    """Raises ConfigError where `value` is no http or https address."""
    if re.fullmatch(r"https?://[^\s/?#\"'<>]+(?:/[^\s\"'<>]*)?", value) is None:
        raise ConfigError(f"{option} {value!r}: an address is expected, such as http://prometheus:9090")


def _is_name(value: str) -> bool:
    return len(value) <= _LONGEST_NAME and re.fullmatch(_NAME, value) is not None
