"""`evalpipe collect`: the configuration as plain settings, checked where only a running collector would notice."""

from __future__ import annotations

import logging
import re
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import msgspec

from evalpipe.collector.auth import is_loopback_name
from evalpipe.collector.descriptors import raise_limit
from evalpipe.collector.logs import set_up_logging
from evalpipe.collector.multi_collector import OneCollector, run_collectors
from evalpipe.collector.settings import IN_PROCESS, ArmSettings, CollectorSettings, Secret
from evalpipe.collector.status import Samples
from evalpipe.collector.supervisor import Run, listen, run_collector
from evalpipe.config import ArmConfig, Config, secret
from evalpipe.errors import BudgetError, ConfigError, EvalpipeError
from evalpipe.identity import fingerprint
from evalpipe.providers.pricing import is_priced
from evalpipe.spool.checkpoint import is_lost
from evalpipe.workspace.alerts import CollectorAlerts, webhook_address
from evalpipe.workspace.paths import Workspace, check_writable, open_workspace, price_book, replica_name
from evalpipe.workspace.secrets import UNIT_KEY_ENV, key_fingerprint, unit_key

COSTS_UNKNOWN = (
    'stream_usage is "as_is": chat streams that do not ask for their usage have NO TOKENS AND NO COST in the log. '
    '[collector] stream_usage = "inject" asks for it, and hides it from the client again'
)
logger = logging.getLogger(__name__)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def collect(
    workspace: Workspace,
    *,
    host: str | None = None,
    port: int | None = None,
    workers: int | None = None,
    load_every: str | None = None,
    insecure: bool = False,
    log_format: str = "text",
    log_level: str = "info",
    status_every_s: float = 60.0,
    ends_with_stdin: bool = False,
) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises ConfigError, BudgetError or WorkspaceBusyError where it cannot begin."""
    set_up_logging("collect", log_format=log_format, level=log_level)
    config = workspace.require_config()
    check_writable(workspace.data)
    settings = collector_settings(workspace)
    if settings.objects_url is not None:
        _check_shared_key(settings.objects_url, settings)
    host = host or config.collector.host
    settings = msgspec.structs.replace(settings, is_loopback=is_loopback(host))
    if not settings.is_loopback and settings.client_token is None and not insecure:
        raise ConfigError(
            f"collector.host = {host!r} is reachable from other machines: set a client token in "
            f"${config.collector.client_token_env}, or give --insecure"
        )
    load_every_s = None if load_every is None else read_duration(load_every)
    if load_every_s is not None and find_spec("pyarrow") is None:
        raise ConfigError(
            "--load-every: pyarrow is not installed here, and `evalpipe load` needs it: install evalpipe with all its packages "
            "(README, Install), or load on another machine by `evalpipe load --spool DIR`"
        )
    load_command = [sys.executable, "-m", "evalpipe", "load", "--data", workspace.url or str(workspace.data)]
    if workspace.config_path is not None:
        load_command += ["--config", str(workspace.config_path)]
    alerts, no_alerts = _alerts(workspace)
    warnings = [COSTS_UNKNOWN] if costs_unknown(config) else []
    raise_limit()
    run_collector(
        Run(
            settings=msgspec.structs.replace(settings, log_level=log_level),
            host=host,
            port=config.collector.port if port is None else port,
            n_workers=workers or config.collector.workers,
            load_every_s=load_every_s,
            load_command=load_command,
            controller_command=_controller_command(workspace),
            status_every_s=status_every_s,
            ends_with_stdin=ends_with_stdin,
            watch=None if alerts is None else partial(_look, alerts),
            watch_every_s=30.0 if alerts is None else alerts.every_s,
            warnings=[*warnings, *no_alerts],
            held=_replica_lease(settings),
        )
    )


def _replica_lease(settings: CollectorSettings) -> AbstractContextManager[object]:
    """The replica's name, where several collectors share object storage."""
    if settings.objects_url is None:
        return nullcontext()
    from evalpipe.workspace.replica_lease import ReplicaLease  # the package obstore: only with object storage

    return ReplicaLease(settings.objects_url, settings.experiment, settings.replica, Path(settings.spool))


def _alerts(workspace: Workspace) -> tuple[CollectorAlerts | None, list[str]]:
    """Who sends alerts, and the warning of why nobody does where a webhook is named: users are served all the same."""
    try:
        address = webhook_address(workspace.require_config().alerts)
    except ConfigError as error:
        return None, [f"{error}: the collector sends no alerts"]
    return None if address is None else CollectorAlerts(workspace), []


def _look(alerts: CollectorAlerts, samples: Samples) -> None:
    new, problem = alerts.look(samples)
    for one in new:
        logger.warning("alert (%s): %s", one.kind, one.text)
    if problem is not None:
        raise EvalpipeError(problem)


def collect_several(
    folders: Sequence[Path],
    *,
    host: str | None = None,
    options: Sequence[str] = (),
    log_format: str = "text",
    log_level: str = "info",
) -> None:
    """One collector for each workspace folder, each at its own configuration's address, under one process that keeps them
    running. Until SIGTERM or Ctrl-C.

    Args:
        host: to listen on, instead of what the configurations name.
        options: further ones of the command line, for each of them.

    Raises:
        ConfigError: where a folder cannot be collected, two of them share an address or a data folder, or an address is taken,
            before anything is started.
    """
    set_up_logging("collect", log_format=log_format, level=log_level)
    workspaces = [open_workspace(root=folder.resolve()) for folder in folders]
    _check_apart(workspaces, host)
    names = Counter(workspace.require_config().experiment.name for workspace in workspaces)
    collectors = []
    for workspace in workspaces:
        name = workspace.require_config().experiment.name
        command = [sys.executable, "-m", "evalpipe", "collect", "--with-parent", "--log-format", "json"]
        command += ["--log-level", log_level, "--data", workspace.url or str(workspace.data)]
        command += ["--config", str(workspace.config_path)]
        command += [*options, *([] if host is None else ["--host", host])]
        shown = name if names[name] == 1 else str(workspace.root)
        collectors.append(OneCollector(experiment=shown, command=command, data=workspace.data))
    run_collectors(collectors)


def _check_apart(workspaces: Sequence[Workspace], host: str | None) -> None:
    """No two of them may write to one spool or listen on one port, and nobody else on theirs."""
    spools: dict[Path, str] = {}
    taken: list[tuple[str, int, str]] = []
    for workspace in workspaces:
        config = workspace.require_config()
        config.require_arms()
        name = f"{config.experiment.name} in {workspace.root}"
        other = spools.setdefault(workspace.spool.resolve(), name)
        if other is not name:
            raise ConfigError(f"{other} and {name} have one data folder, {workspace.data}")
        own, port = host or config.collector.host, config.collector.port
        for known, used, other in taken:
            if port and used == port and (known == own or {known, own} & _EVERY_ADDRESS):
                raise ConfigError(
                    f"{other} and {name} both listen on port {port}: give one of them another [collector] port"
                )
        taken.append((own, port, name))
    for own, port, name in taken:
        try:
            for sock in listen(own, port, 1):
                sock.close()
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None


_EVERY_ADDRESS = {"0.0.0.0", "::"}


def costs_unknown(config: Config) -> bool:
    """Whether chat streams pass as they are, although an arm uses a dialect that reports usage on demand only."""
    arms = [] if config.arms is None else [config.arms.control, config.arms.treatment]
    speaks_chat = any(arm is not None and arm.provider != "anthropic" for arm in arms)
    return speaks_chat and config.collector.stream_usage == "as_is"


def _controller_command(workspace: Workspace) -> list[str]:
    """What watches the canary beside the workers; empty in the other modes."""
    config = workspace.require_config()
    if config.experiment.mode != "canary":
        return []
    for package in ("duckdb", "pyarrow"):  # the controller's: this process need not hold them
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"a canary's controller needs {package}", name=package)
    from evalpipe.rollout.guardrails import build_guardrails  # numpy: only where a canary is watched

    build_guardrails(config.canary.guardrails)  # one that means nothing ends the collector before anything starts
    command = [
        sys.executable,
        "-m",
        "evalpipe",
        "canary",
        "run",
        "--with-parent",
        "--log-format",
        "json",
        "--data",
        workspace.url or str(workspace.data),
    ]
    return command if workspace.config_path is None else [*command, "--config", str(workspace.config_path)]


def collector_settings(workspace: Workspace) -> CollectorSettings:
    """The settings of the collector's processes."""
    config = workspace.require_config()
    arms = config.require_arms()
    options, experiment = config.collector, config.experiment
    control = _arm(workspace, "control", arms.control)
    treatment = None if arms.treatment is None else _arm(workspace, "treatment", arms.treatment)
    prices = price_book(config)
    if treatment is not None and options.shadow_budget_usd is not None:
        now = datetime.now(UTC)
        if treatment.model is None or not is_priced(treatment.model, treatment.provider, at=now, prices=prices):
            raise BudgetError(
                f"collector.shadow_budget_usd cannot be kept: no price is known for arms.treatment.model = "
                f"{treatment.model!r}; add it under [prices], or leave the budget out"
            )
    token = secret(options.client_token_env)
    return CollectorSettings(
        experiment=experiment.name,
        control=control,
        treatment=treatment,
        spool=str(workspace.spool.resolve()),
        data=str(workspace.data.resolve()),
        replica=replica_name(config),
        objects_url=workspace.url,
        state_timeout_s=config.canary.state_timeout_s,
        mode=experiment.mode,
        treatment_percent=experiment.treatment_percent,
        salt=experiment.salt,
        assignment=experiment.assignment,
        unit_sources=experiment.unit,
        config_fingerprint=config_fingerprint(config, control, treatment),
        sample_percent=options.sample_percent,
        shadow_percent=config.canary.shadow_percent,
        connect_timeout_s=options.connect_timeout_s,
        idle_timeout_s=options.idle_timeout_s,
        timeout_s=options.timeout_s,
        shadow_timeout_s=options.shadow_timeout_s,
        fsync_interval_s=options.fsync_interval_s,
        hash_units=options.hash_units,
        unit_key=Secret(unit_key(workspace, experiment.name if options.hash_units else None).decode("latin-1")),
        inject_stream_usage=options.stream_usage == "inject",
        shadow_concurrency=options.shadow_concurrency,
        shadow_budget_usd=options.shadow_budget_usd,
        shadow_spent_usd=0.0 if options.shadow_budget_usd is None else spent_on_copies(workspace, experiment.name),
        prices={model: own.model_dump(exclude_none=True) for model, own in config.prices.items()},
        redact=options.redact,
        responses_may_continue=options.responses_may_continue,
        otel_names=config.telemetry.names == "otel",
        client_token=None if token is None else Secret(token),
        allowed_hosts=options.allowed_hosts,
        allowed_origins=options.allowed_origins,
    )


_KEY_CHECK_S = 5.0


def _check_shared_key(url: str, settings: CollectorSettings) -> None:
    """All replicas hash units and seal request ids by one key: its fingerprint is stored by the first of them.

    Raises:
        ConfigError: where this one's key is another. A storage that cannot be reached is no reason not to serve.
    """
    from evalpipe.objects.client import KeyExistsError, StorageError, open_objects

    objects, key = open_objects(url, give_up_after_s=_KEY_CHECK_S), f"state/replicas/{settings.experiment}.unit-key"
    own = key_fingerprint(settings.unit_key.value.encode("latin-1"))
    try:
        try:
            objects.create(key, own.encode())
            return
        except KeyExistsError:
            found = objects.get(key)
    except StorageError as error:
        logger.warning("the replicas' key of unit ids cannot be compared: %s", error)
        return
    if found is not None and found.data.decode("ascii", "replace") != own:
        raise ConfigError(
            f"this collector's key of unit ids (fingerprint {own}) is not that of the experiment's other replicas "
            f"({found.data.decode('ascii', 'replace')}, {key} of {url}): set {UNIT_KEY_ENV} to the same key on all of them"
        )


def spent_on_copies(workspace: Workspace, experiment: str) -> float:
    """USD of the shadow requests in the store, where the treatment process has no account of its own that can be read."""
    if not is_lost(workspace.spool) or experiment not in workspace.loaded_experiments():
        return 0.0
    from evalpipe.store.query import open_store  # DuckDB: only where an account is lost

    with open_store(workspace.data, experiment) as store:
        row = store.connection.execute(
            "SELECT coalesce(sum(cost_usd), 0) FROM exchanges WHERE role = 'shadow'"
        ).fetchone()
    return float(row[0]) if row else 0.0


def config_fingerprint(config: Config, control: ArmSettings, treatment: ArmSettings | None) -> str:
    """What every record carries, "CONTROL-TREATMENT": a fingerprint of each arm's configuration, "" for no treatment."""
    arms = config.require_arms()
    names = (None if arm is None else arm.api_key_env for arm in (arms.control, arms.treatment))
    return "-".join(
        "" if arm is None else arm_fingerprint(arm, key_name)
        for arm, key_name in zip((control, treatment), names, strict=True)
    )


def arm_fingerprint(arm: ArmSettings, key_name: str | None) -> str:
    """Of what decides an arm's answers: provider, address, model, parameters, dropped fields, system prompt, rewriting,
    and the name of the key's environment variable (never the key)."""
    return fingerprint(
        {
            "provider": arm.provider,
            "base_url": arm.base_url,
            "model": arm.model,
            "params": arm.params,
            "system_prompt": arm.system_prompt,
            "rewrite": arm.rewrite,
            "api_key_env": key_name,
            **(
                {"drop": sorted(arm.drop)} if arm.drop else {}
            ),  # absent: logs from before it belong to the same configuration
        }
    )


def _arm(workspace: Workspace, name: str, arm: ArmConfig) -> ArmSettings:
    key = None
    if arm.api_key_env is not None:
        key = secret(arm.api_key_env)
        if key is None:
            raise ConfigError(f"arms.{name}.api_key_env = {arm.api_key_env!r}: this environment variable is not set")
        if not key.isascii() or not key.isprintable() or key != key.strip():
            raise ConfigError(f"${arm.api_key_env} holds blanks or characters that are not allowed in a header")
    return ArmSettings(
        arm=name,
        provider=arm.provider,
        base_url=IN_PROCESS if arm.provider == "litellm" and arm.base_url is None else arm.effective_base_url,
        model=arm.model,
        rewrite=arm.rewrite,
        api_key=None if key is None else Secret(key),
        system_prompt=_system_prompt(workspace, name, arm),
        params=arm.params,
        drop=arm.drop,
        infrastructure_usd=arm.infrastructure_usd_per_request,
    )


def arm_settings(workspace: Workspace, name: str, arm: ArmConfig) -> ArmSettings:
    """One arm as the collector's processes get it. Raises ConfigError where its key or its prompt is missing."""
    return _arm(workspace, name, arm)


def _system_prompt(workspace: Workspace, name: str, arm: ArmConfig) -> str | None:
    if arm.system_prompt_file is None:
        return None
    path = workspace.root / Path(arm.system_prompt_file)
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"arms.{name}.system_prompt_file = {arm.system_prompt_file!r} cannot be read: {error}"
        ) from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    name = host.lower()
    return is_loopback_name(name) and not name.endswith(".localhost")  # what those resolve to here is not known


def read_duration(text: str, option: str = "--load-every") -> float:
    """ "10m", "30s", "1h" → seconds. Raises ConfigError, which names the option."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(s|m|h)", text.strip())
    if match is None or float(match.group(1)) == 0:
        raise ConfigError(f"{option} {text!r}: give a duration such as 30s, 10m or 1h")
    return float(match.group(1)) * _UNITS[match.group(2)]
