"""A collector's settings: plain frozen values, made from the configuration by `workspace.collect`.

They cross process borders as JSON over a pipe, never on a command line, so a key in them shows in no process list.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import msgspec

from evalpipe.providers.paths import endpoint_path, is_azure, merged_query, served_path, split_address

IN_PROCESS = "litellm://library"
"""base_url of an arm that is the litellm library itself; the supervisor puts the address of its bridge here"""
HISTORY_POLL_S = 0.2
"""every process looks this often whether a canary's history has changed"""


class Secret(msgspec.Struct, frozen=True):
    """A key or token; its text is only had by asking for `value`."""

    value: str

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__


class Origin(msgspec.Struct, frozen=True):
    """Where an arm's server is: the key of the connection pool."""

    host: str
    port: int
    tls: bool
    authority: str
    """value of the Host header"""
    base_path: str
    """path of the base_url, without a trailing slash"""
    query: str = ""
    """what the base_url names after a `?`: goes with every request"""
    is_exact: bool = False
    """endpoints are right below `base_path`: no `/v1` is put between"""

    @classmethod
    def of(cls, base_url: str) -> Origin:
        parts = urlsplit(base_url)
        tls = parts.scheme == "https"
        host = parts.hostname or ""
        shown = f"[{host}]" if ":" in host else host
        port = parts.port or (443 if tls else 80)
        authority = shown if parts.port is None else f"{shown}:{parts.port}"
        path, query, is_exact = split_address(base_url)
        return cls(host, port, tls, authority, path, query, is_exact)

    def served_target(self, target: bytes, *, from_anthropic: bool) -> bytes:
        """Path and query at this server of a client's own; see `served_path`."""
        if not self.is_exact and not self.query:
            return target
        path, question, query = str(target, "latin-1").partition("?")
        path = served_path(self.base_path, path, is_exact=self.is_exact, from_anthropic=from_anthropic)
        query = merged_query(query, self.query)
        return (f"{path}?{query}" if query or question else path).encode("latin-1")

    def endpoint_target(self, endpoint: str) -> bytes:
        """Path and query at which this server is asked for an endpoint."""
        path = endpoint_path(self.base_path, endpoint, is_exact=self.is_exact)
        return (f"{path}?{self.query}" if self.query else path).encode("latin-1")


class ArmSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One arm. `params`, `system_prompt` and `drop` change the client's request where it is written anew (treatment,
    `rewrite`)."""

    arm: str
    provider: str
    base_url: str
    model: str | None = None
    rewrite: bool = False
    api_key: Secret | None = None
    system_prompt: str | None = None
    params: dict[str, Any] = {}
    drop: tuple[str, ...] = ()
    infrastructure_usd: float = 0.0

    @property
    def origin(self) -> Origin:
        return Origin.of(self.base_url)

    @property
    def key_line(self) -> bytes:
        """The header line that carries the arm's key; b"" where the client's own passes through."""
        if self.api_key is None:
            return b""
        if self.provider == "anthropic":
            prefix = b"x-api-key: "
        else:
            prefix = b"api-key: " if is_azure(self.base_url) else b"Authorization: Bearer "
        return prefix + self.api_key.value.encode("latin-1")

    @property
    def passes_through(self) -> bool:
        """Whether the client's own key or model reaches the arm: control takes both as they come unless they are set. To the
        treatment the client's key never goes."""
        if self.arm == "control":
            return self.api_key is None or not self.rewrite or self.model is None
        return self.model is None


class CollectorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a worker or the treatment process needs. Times in seconds, sizes in bytes, shares in percent."""

    experiment: str
    control: ArmSettings
    spool: str
    """folder of the segments"""
    data: str
    """folder of the data (verdict.json, canary state)"""
    replica: str = ""
    """this collector's name among those of the experiment"""
    objects_url: str | None = None
    """object storage that the replicas share: the copies' budget and the canary's state are there"""
    state_timeout_s: float = 60.0
    """canary: a replica that has not seen the shared state for so long serves the last stage known to be safe"""
    mode: str = "shadow"
    treatment: ArmSettings | None = None
    treatment_percent: float = 10.0
    salt: str = ""
    assignment: str = "sha256"
    """sha256 | md5-100: how a unit is drawn"""
    unit_sources: tuple[str, ...] = ()
    config_fingerprint: str | None = None
    sample_percent: float = 100.0
    shadow_percent: float = 0.0
    """canary: share of control-served conversations that are shadowed as well"""
    connect_timeout_s: float = 10.0
    idle_timeout_s: float = 120.0
    timeout_s: float = 600.0
    shadow_timeout_s: float = 120.0
    fsync_interval_s: float = 1.0
    hash_units: bool = True
    unit_key: Secret = Secret("")
    inject_stream_usage: bool = False
    shadow_concurrency: int = 64
    shadow_budget_usd: float | None = None
    shadow_spent_usd: float = 0.0
    """what loaded copies have cost, where the treatment process's own account of it is lost"""
    prices: dict[str, dict[str, Any]] = {}
    """model → the keys of `providers.pricing.Price` that are set"""
    redact: tuple[str, ...] = ()
    client_token: Secret | None = None
    is_loopback: bool = True
    """whether only this machine can reach the listening address"""
    allowed_hosts: tuple[str, ...] = ()
    """further names the collector has, in lower case, with or without a port"""
    allowed_origins: tuple[str, ...] = ()
    """web pages that may use a collector without a token: "https://app.example", in lower case"""
    ca_file: str | None = None
    """extra trust for TLS upstreams (a company's CA)"""
    max_body_bytes: int = 128 << 20
    max_logged_bytes: int = 64 << 20
    max_head_bytes: int = 64 << 10
    head_timeout_s: float = 30.0
    """a client has this long to send a whole request head"""
    body_timeout_s: float = 60.0
    """between two bytes of a request, or of an answer the client does not read"""
    keep_alive_s: float = 75.0
    """an idle client connection"""
    upstream_keep_alive_s: float = 4.5
    """an idle connection to an arm; shorter than the 5 s after which uvicorn and llama.cpp close theirs"""
    segment_bytes: int = 64 << 20
    segment_s: float = 300.0
    shadow_queue: int = 1000
    """copies that may wait"""
    shadow_queue_bytes: int = 64 << 20
    shadow_queue_age_s: float = 30.0
    """a copy that waited longer is shed"""
    responses_may_continue: bool = True
    """ab, canary: a stored response may be gone on with by its id, which a translated one cannot be"""
    otel_names: bool = False
    """also count under OpenTelemetry's names for generative AI"""
    log_level: str = "info"
    load_every_s: float | None = None
    """how often the collector has its spool loaded"""
    metrics_dir: str | None = None
    shadow_socket: str | None = None
    """where originals go to the treatment process when redaction keeps them off the disk"""

    @property
    def shares_account(self) -> bool:
        """Whether both arms ask one server with one key: what it keeps for the one it keeps for the other, too."""
        control, treatment = self.control, self.treatment
        if treatment is None or control.api_key is None or treatment.api_key is None:
            return False
        return (control.origin, control.api_key.value) == (treatment.origin, treatment.api_key.value)

    @property
    def effective_salt(self) -> str:
        return self.salt or self.experiment
