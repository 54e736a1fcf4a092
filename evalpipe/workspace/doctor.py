"""`evalpipe doctor`: what is missing before a run: keys, upstreams, folders, prices, judges. Each check is one function."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from evalpipe.collector.traffic_watch import folder_of, read_uncollected
from evalpipe.config import ArmConfig, Config, secret
from evalpipe.credentials import shown_url
from evalpipe.errors import ConfigError, DataError, EvalpipeError
from evalpipe.objects.shared import working_copy
from evalpipe.traffic_shape import REMEDY, summary
from evalpipe.workspace.collect import costs_unknown
from evalpipe.workspace.paths import Workspace

REACH_TIMEOUT_S = 3.0
LOW_DISK_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """`status`: pass | warn (works, with a caveat) | fail (a run would fail)."""

    name: str
    status: str
    detail: str
    remedy: str | None = None


def _arms(config: Config) -> Iterator[tuple[str, ArmConfig]]:
    if config.arms is not None:
        yield "control", config.arms.control
        if config.arms.treatment is not None:
            yield "treatment", config.arms.treatment


def check_arms(workspace: Workspace, config: Config) -> Iterator[Diagnosis]:
    if config.arms is None:
        yield Diagnosis(name="arms", status="fail", detail="no [arms.control]", remedy="add it to evalpipe.toml")
    elif config.arms.treatment is None:
        yield Diagnosis(
            name="arms", status="warn", detail="no [arms.treatment]: control alone is logged, nothing is compared"
        )


def check_keys(workspace: Workspace, config: Config) -> Iterator[Diagnosis]:
    wanted = [(f"arms.{name}", arm.api_key_env) for name, arm in _arms(config)]
    wanted.append(("judge", config.judge.api_key_env))
    for where, name in wanted:
        if name is None:
            continue
        if secret(name):
            yield Diagnosis(name=f"key {where}", status="pass", detail=f"{name} is set")
        else:
            yield Diagnosis(
                name=f"key {where}",
                status="fail",
                detail=f"{name} is not in the environment",
                remedy=f"export {name}=…",
            )
    if config.arms is not None and config.arms.treatment is not None and config.arms.treatment.api_key_env is None:
        yield Diagnosis(
            name="key arms.treatment",
            status="warn",
            detail="no api_key_env: copies are sent without a key (the client's own key never goes to the treatment)",
            remedy="set arms.treatment.api_key_env where the provider needs one",
        )


def check_upstreams(workspace: Workspace, config: Config) -> Iterator[Diagnosis]:
    urls = [
        (f"upstream {name}", arm.effective_base_url)
        for name, arm in _arms(config)
        if arm.provider != "litellm" or arm.base_url
    ]
    if config.judge.base_url:
        urls.append(("upstream judge", config.judge.base_url))
    for name, url in urls:
        problem = _unreachable(url)
        if problem is None:
            yield Diagnosis(name=name, status="pass", detail=f"{shown_url(url)} answers")
        else:
            yield Diagnosis(
                name=name, status="fail", detail=f"{shown_url(url)}: {problem}", remedy="check base_url and the network"
            )


def _unreachable(url: str) -> str | None:
    """Why no connection (with TLS where https) can be made, or None. No request is sent: nothing is billed."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((host, port), timeout=REACH_TIMEOUT_S) as plain:
            if parts.scheme == "https":
                ssl.create_default_context().wrap_socket(plain, server_hostname=host).close()
    except OSError as error:  # socket.gaierror, timeouts and ssl.SSLError are OSErrors
        return error.strerror or str(error) or type(error).__name__
    return None


def check_folders(workspace: Workspace, config: Config) -> Iterator[Diagnosis]:
    for folder in (workspace.data, workspace.reports):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            yield Diagnosis(
                name=f"folder {folder.name}", status="fail", detail=f"{existing} cannot be written: {error.strerror}"
            )
            continue
        free = shutil.disk_usage(existing).free
        low = free < LOW_DISK_BYTES
        yield Diagnosis(
            name=f"folder {folder.name}",
            status="warn" if low else "pass",
            detail=f"{folder} is writable, {free / 2**30:.1f} GiB free",
            remedy="free some space: on a full disk users are served on, but the log has gaps" if low else None,
        )


def check_storage(workspace: Workspace, config: Config) -> Iterator[Diagnosis]:
    if workspace.url is None:
        return
    from evalpipe.objects.client import StorageError, check_conditional_writes, open_objects

    try:
        check_conditional_writes(open_objects(workspace.url, give_up_after_s=REACH_TIMEOUT_S))
        copy = working_copy(workspace.data)
        if copy is not None:
            copy.check()
    except DataError as error:
        yield Diagnosis(name="data", status="fail", detail=str(error))
    except (ConfigError, StorageError) as error:
        remedy = "check the credentials, the bucket's name and the network"
        yield Diagnosis(name="data", status="fail", detail=str(error), remedy=remedy)
    else:
        yield Diagnosis(
            name="data", status="pass", detail=f"{workspace.url} is writable and honours conditional writes"
        )


def check_prompt_files(workspace: Workspace, config: Config) -> Iterator[Diagnosis]:
    for name, arm in _arms(config):
        if arm.system_prompt_file is not None and not (workspace.root / arm.system_prompt_file).is_file():
            yield Diagnosis(
                name=f"prompt {name}", status="fail", detail=f"no file {arm.system_prompt_file} in {workspace.root}"
            )


def check_prices(workspace: Workspace, config: Config) -> Iterator[Diagnosis]:
    from evalpipe.providers.pricing import is_priced
    from evalpipe.workspace.paths import price_book

    for name, arm in _arms(config):
        if arm.model is None:
            continue
        if not is_priced(arm.model, arm.provider, at=datetime.now(UTC), prices=price_book(config)):
            yield Diagnosis(
                name=f"price {name}",
                status="warn",
                detail=f"no price known for {arm.model}: its cost will be unknown, never 0",
                remedy=f'add [prices."{arm.model}"] with input and output in USD per million tokens',
            )
        else:
            yield Diagnosis(name=f"price {name}", status="pass", detail=f"{arm.model}: a price is known")


def check_judges(workspace: Workspace, config: Config) -> Iterator[Diagnosis]:
    from evalpipe.workspace.judge_setup import load_specs

    try:
        specs = load_specs(workspace)
    except EvalpipeError as error:
        yield Diagnosis(name="judge", status="fail", detail=str(error))
        return
    for spec in specs:
        yield Diagnosis(
            name="judge", status="pass", detail=f"{spec.name} ({spec.model}), fingerprint {spec.fingerprint}"
        )
    yield from _family_check(config, {spec.model for spec in specs})


def _family_check(config: Config, judges: set[str]) -> Iterator[Diagnosis]:
    """Judges that are of the kind of one of the configured arms, before a first pair is judged."""
    from evalpipe.analysis.checks.judge import OTHER_FAMILY, family_overlap

    models = [(name, arm.model) for name, arm in _arms(config) if arm.model is not None]
    for judge in sorted(judges):
        status, detail = family_overlap(judge, models)
        if status == "warn":
            yield Diagnosis(name="judge", status=status, detail=detail or "", remedy=OTHER_FAMILY)


def check_tokens(workspace: Workspace, config: Config) -> Iterator[Diagnosis]:
    if config.collector.host not in {"127.0.0.1", "::1", "localhost"} and not secret(config.collector.client_token_env):
        yield Diagnosis(
            name="client token",
            status="fail",
            detail=f"the collector listens on {config.collector.host}, but {config.collector.client_token_env} is not set",
            remedy=f"export {config.collector.client_token_env}=…, or run `evalpipe collect --insecure`",
        )
    if config.collector.hash_units and not os.environ.get("EVALPIPE_UNIT_KEY"):
        yield Diagnosis(
            name="unit key",
            status="pass",
            detail=f"user ids are hashed, key in {workspace.unit_key_path.name} (replicas share one by EVALPIPE_UNIT_KEY)",
        )


def check_stream_usage(workspace: Workspace, config: Config) -> Iterator[Diagnosis]:
    from evalpipe.store.query import open_store

    with open_store(workspace.data, config.experiment.name) as store:
        streamed, without = store.connection.execute(
            "SELECT count(*), count(*) FILTER (output_tokens IS NULL) FROM exchanges "
            "WHERE role = 'served' AND streamed AND outcome IN ('ok', 'refused', 'truncated')"
        ).fetchone() or (0, 0)
    if without:
        yield Diagnosis(
            name="stream usage",
            status="warn",
            detail=f"{without} of {streamed} streamed answers carry no token counts: their cost and tokens are unknown",
            remedy='set collector.stream_usage = "inject", or have the app send stream_options.include_usage',
        )
    elif costs_unknown(config):
        yield Diagnosis(
            name="stream usage",
            status="warn",
            detail='stream_usage is "as_is": of chat streams that do not ask for their usage neither tokens nor cost are known',
            remedy='set collector.stream_usage = "inject": evalpipe asks for it, and takes it out of what the client gets',
        )


def check_traffic(workspace: Workspace, config: Config) -> Iterator[Diagnosis]:
    from evalpipe.analysis.checks.traffic import uncopied_found, units_found
    from evalpipe.store.query import open_store

    name = config.experiment.name
    with open_store(workspace.data, name) as store:
        looked = (("units", units_found(store.connection, name)), ("uncopied", uncopied_found(store.connection, name)))
        for check, found in looked:
            for finding in found:
                yield Diagnosis(name=check, status="warn", detail=finding.detail, remedy=finding.remedy)


def check_control_settings(workspace: Workspace, config: Config) -> Iterator[Diagnosis]:
    control = None if config.arms is None else config.arms.control
    if control is None or control.rewrite:
        return
    unused = [
        name for name, given in (("params", control.params), ("drop", set(control.drop) - {"stream_options"})) if given
    ]
    if unused:
        yield Diagnosis(
            name="settings control",
            status="warn",
            detail=f"arms.control.{' and '.join(unused)} not used: control's requests pass as clients send them",
            remedy="set arms.control.rewrite = true to have them written, or leave them out",
        )


def check_refusals(workspace: Workspace, config: Config) -> Iterator[Diagnosis]:
    from evalpipe.providers.request_fields import field_named
    from evalpipe.providers.setup_faults import WINDOW, RefusalWatch
    from evalpipe.store.query import open_store

    watch = RefusalWatch()
    with open_store(workspace.data, config.experiment.name) as store:
        rows = store.connection.execute(
            "SELECT arm, outcome = 'http_error', status, error_message, request FROM exchanges WHERE status IS NOT NULL "
            "QUALIFY row_number() OVER (PARTITION BY arm ORDER BY started_at DESC) <= ? AND config_fingerprint "
            "IS NOT DISTINCT FROM first_value(config_fingerprint) OVER (PARTITION BY arm ORDER BY started_at DESC) "
            "ORDER BY started_at",
            [WINDOW],
        ).fetchall()
    for arm, failed, status, message, request in rows:
        watch.saw(arm, failed=failed, status=status, message=message, request=(request or "").encode())
    found = watch.found()
    if found is not None:
        yield Diagnosis(
            name=f"requests {found.arm}",
            status="warn",
            detail=found.text(field_named(found.message, found.request)),
            remedy=f"set drop under [arms.{found.arm}]; what was refused stays in the log: `evalpipe exclude` takes its time out",
        )


def check_uncollected(workspace: Workspace, config: Config) -> Iterator[Diagnosis]:
    """The collector's counts since the experiment began."""
    found = read_uncollected(folder_of(workspace.data, config.experiment.name))
    if found:
        yield Diagnosis(name="uncollected calls", status="warn", detail=summary(found), remedy=REMEDY)


def check_stored_files(workspace: Workspace, config: Config) -> Iterator[Diagnosis]:
    from evalpipe.store.parquet import parquet_files, whole_and_damaged
    from evalpipe.store.schema import DATASETS
    from evalpipe.workspace.damaged import REMEDY, damage_sentence

    _, damaged = whole_and_damaged(path for one in DATASETS for path in parquet_files(workspace.data, one, None))
    if damaged:
        yield Diagnosis(name="data", status="fail", detail=damage_sentence(damaged, workspace.data), remedy=REMEDY)


def check_collector(workspace: Workspace, config: Config) -> Iterator[Diagnosis]:
    from evalpipe.collector import is_compiled

    if is_compiled():
        yield Diagnosis(name="collector", status="pass", detail="compiled")
    else:
        yield Diagnosis(
            name="collector",
            status="pass",
            detail="interpreted: it serves the same, at twice the processor time of a compiled wheel's",
            remedy="for heavy traffic install a wheel, or `pip install .` where there is a C compiler",
        )


CHECKS: tuple[Callable[[Workspace, Config], Iterator[Diagnosis]], ...] = (
    check_arms,
    check_control_settings,
    check_keys,
    check_upstreams,
    check_folders,
    check_storage,
    check_prompt_files,
    check_prices,
    check_judges,
    check_tokens,
    check_collector,
    check_stored_files,
    check_stream_usage,
    check_refusals,
    check_uncollected,
    check_traffic,
)


def diagnose(workspace: Workspace) -> list[Diagnosis]:
    """Every check in order; the configuration itself has been read, so it is sound."""
    config = workspace.require_config()
    return [diagnosis for check in CHECKS for diagnosis in check(workspace, config)]
