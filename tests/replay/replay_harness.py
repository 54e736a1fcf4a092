"""A workspace with a log of control's answers, and arms that are a simulated provider."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from evalpipe.models import Arm, Exchange, Role
from evalpipe.store.parquet import DatasetWriter
from evalpipe.store.query import open_store
from evalpipe.store.schema import BY_NAME, to_table
from evalpipe.workspace.paths import Workspace, open_workspace
from evalpipe.workspace.replay import ReplayOptions, replay

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
FAST = "requests_per_minute = 600000\ninput_tokens_per_minute = 1e9\noutput_tokens_per_minute = 1e9\n"
CONTROL, TREATMENT = "gpt-4.1-mini", "claude-haiku-4-5"


def logged(number: int, *, user: str | None = None, body: Mapping[str, Any] | None = None, **columns: Any) -> Exchange:
    """A request as the collector's log holds it, with control's answer."""
    document = body or {
        "model": CONTROL,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"Question {number}?"},
        ],
        "max_tokens": 2000,
    }
    values: dict[str, Any] = {
        "request_id": f"r{number:05d}",
        "arm": Arm.CONTROL,
        "role": Role.SERVED,
        "unit_id": user or f"u{number}",
        "conversation_id": f"c{number}",
        "started_at": NOON + timedelta(minutes=number),
        "provider": "openai",
        "endpoint": "chat.completions",
        "model_requested": CONTROL,
        "model": CONTROL,
        "request": json.dumps(document),
        "text": f"Answer {number}.",
        "status": 200,
        "latency_ms": 1000.0,
        "input_tokens": 20,
        "output_tokens": 10,
        "cost_usd": 0.001,
        "prompt": f"Question {number}?",
        "turn": 1,
        "step": 0,
    }
    return Exchange(**{**values, **columns})


def write(data: Path, rows: Sequence[Exchange], experiment: str = "exp") -> None:
    dataset = BY_NAME["exchanges"]
    with DatasetWriter(data, dataset) as writer:
        writer.add(experiment, to_table(dataset.schema, rows))


def workspace(
    root: Path,
    url: str,
    rows: Sequence[Exchange] = (),
    *,
    experiment: str = "exp",
    control_from: str | None = None,
    treatment: str = "",
    control: str = "",
    replaying: str = "",
    models: tuple[str, str] = (CONTROL, TREATMENT),
    provider: str = "anthropic",
    mode: str = "shadow",
    more: str = "",
) -> Workspace:
    """A folder with evalpipe.toml; `rows` go into its store."""
    root.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("REPLAY_KEY", "sk-replay-0123456789abcdef")
    other = f'control_from = "{control_from}"\n' if control_from else ""
    (root / "evalpipe.toml").write_text(
        f'[experiment]\nname = "{experiment}"\nmode = "{mode}"\n{other}'
        f'[arms.control]\nprovider = "openai"\nbase_url = "{url}/v1"\nmodel = "{models[0]}"\n'
        f'api_key_env = "REPLAY_KEY"\n{control}\n'
        f'[arms.treatment]\nprovider = "{provider}"\nbase_url = "{url}{"" if provider == "anthropic" else "/v1"}"\n'
        f'model = "{models[1]}"\napi_key_env = "REPLAY_KEY"\n'
        f"{treatment}\n[replay]\n{FAST}{replaying}\n"
        f'[judge]\nbase_url = "{url}"\nmodel = "claude-haiku-4-5"\napi_key_env = "REPLAY_KEY"\n{FAST}\n{more}'
    )
    if rows:
        write(root / "data", rows, experiment)
    return open_workspace(root / "evalpipe.toml")


def run(found: Workspace, **options: Any) -> Any:
    """One replay, without a question."""
    return replay(found, ReplayOptions(**options), yes=True, output=lambda line: None, confirm=None)


def query(found: Workspace, sql: str, experiment: str = "exp", **more: Any) -> list[tuple[Any, ...]]:
    with open_store(found.data, experiment, **more) as store:
        return store.connection.execute(sql).fetchall()
