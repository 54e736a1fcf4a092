"""What a running collector counts, asked over its own routes: for `evalpipe serve` and alerts. Reads only."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from evalpipe.collector.supervisor import address_file
from evalpipe.config import secret
from evalpipe.workspace.paths import Workspace

_TIMEOUT_S = 3.0
_MOST_BYTES = 4 << 20
_ENDED_WELL = frozenset({"ok", "client_closed"})
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Counters:
    """What the collector has counted since it was started; over all its processes.

    Attributes:
        requests: answers served, by arm.
        failures: how answers failed → how many; a copy's are named "copy …".
        pairs: copies that the treatment answered.
        copies_usd: of all copies of the experiment, also those before the start.
        budget_usd: `[collector] shadow_budget_usd`; None: no limit.
        not_copied: why requests were not copied, other than by the sample → how many.
        unloaded_bytes, unloaded_age_s: the log that waits for load, and since when.
        percentage: of the treatment, where the experiment is a canary.
        reasons: what health reports to be wrong.
        health: the document of /_evalpipe/health.
    """

    requests: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    pairs: int = 0
    copies: int = 0
    copies_usd: float = 0.0
    budget_usd: float | None = None
    not_copied: dict[str, int] = field(default_factory=dict)
    records_lost: int = 0
    unloaded_bytes: int = 0
    unloaded_age_s: float = 0.0
    percentage: float | None = None
    reasons: tuple[str, ...] = ()
    health: dict[str, Any] = field(default_factory=dict)

    @property
    def n_requests(self) -> int:
        return sum(self.requests.values())

    @property
    def n_failures(self) -> int:
        return sum(self.failures.values())


class CollectorSilentError(Exception):
    """No collector of this experiment answers; `str()` is why, in a line."""


def collector_address(workspace: Workspace) -> str:
    """Where the folder's collector is, or would be: what it wrote down, else the configuration's host and port."""
    try:
        url = json.loads(address_file(workspace.data).read_bytes())["url"]
    except (OSError, ValueError, KeyError, TypeError):
        url = None
    options = workspace.require_config().collector
    if not isinstance(url, str) or urlsplit(url).scheme != "http":
        url = (
            f"http://[{options.host}]:{options.port}"
            if ":" in options.host
            else f"http://{options.host}:{options.port}"
        )
    parts = urlsplit(url)
    host = _ANY_ADDRESS.get(parts.hostname or "", parts.hostname or "127.0.0.1")
    return f"http://{f'[{host}]' if ':' in host else host}:{parts.port or 80}"


def read_counters(workspace: Workspace) -> Counters:
    """The counters of the folder's collector.

    Raises:
        CollectorSilentError: where none answers, or the one at its address is another experiment's.
    """
    config = workspace.require_config()
    address = collector_address(workspace)
    token = secret(config.collector.client_token_env)
    try:
        health = json.loads(_get(address, "/_evalpipe/health", token))
        text = _get(address, "/_evalpipe/metrics", token).decode()
        experiment = health["experiment"]
        reasons = tuple(str(reason) for reason in health.get("reasons", ()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CollectorSilentError(f"what answers at {address} is no collector") from None
    except (OSError, http.client.HTTPException) as error:
        raise CollectorSilentError(f"no collector answers at {address} ({error})") from None
    if experiment != config.experiment.name:
        raise CollectorSilentError(f"the collector at {address} is of experiment {experiment!r}")
    return _counters(text, health, reasons, config.collector.shadow_budget_usd)


def _get(address: str, path: str, token: str | None) -> bytes:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path, headers={} if token is None else {"x-evalpipe-token": token})
        response = connection.getresponse()
        body = response.read(_MOST_BYTES)
    finally:
        connection.close()
    if response.status != 200:
        raise OSError(f"{path} answers {response.status}")
    return body


def _counters(text: str, health: dict[str, Any], reasons: tuple[str, ...], budget_usd: float | None) -> Counters:
    samples = list(_samples(text))

    def total(name: str, **wanted: str) -> float:
        return sum(value for metric, labels, value in samples if metric == name and wanted.items() <= labels.items())

    requests: dict[str, int] = {}
    failures: dict[str, int] = {}
    n_copies = 0
    for metric, labels, value in samples:
        if metric != "evalpipe_requests_total":
            continue
        is_copy, outcome = labels["role"] == "shadow", labels["outcome"]
        if is_copy:
            n_copies += int(value)
        else:
            requests[labels["arm"]] = requests.get(labels["arm"], 0) + int(value)
        if outcome not in _ENDED_WELL:
            name = f"copy {outcome}" if is_copy else outcome
            failures[name] = failures.get(name, 0) + int(value)
    not_copied = {
        labels["status"]: int(value)
        for metric, labels, value in samples
        if metric == "evalpipe_shadow_decisions_total" and labels["status"] not in {"sampled", "not_sampled"} and value
    }
    percentages = [value for metric, _, value in samples if metric == "evalpipe_canary_percentage"]
    return Counters(
        requests=requests,
        failures={name: n for name, n in sorted(failures.items()) if n},
        pairs=int(total("evalpipe_requests_total", role="shadow", outcome="ok")),
        copies=n_copies,
        copies_usd=total("evalpipe_cost_usd_total", role="shadow"),
        budget_usd=budget_usd,
        not_copied=not_copied,
        records_lost=int(total("evalpipe_records_lost_total")),
        unloaded_bytes=int(total("evalpipe_spool_unloaded_bytes")),
        unloaded_age_s=total("evalpipe_spool_unloaded_age_seconds"),
        percentage=percentages[0] if percentages else None,
        reasons=reasons,
        health=health,
    )


def _samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, dict(sample.labels), sample.value
