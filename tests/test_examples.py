"""Every example of docs/examples runs: real processes, a real collector, simulated providers."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import run_here
from warm_start import evalpipe_program

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "docs" / "examples"
pytestmark = pytest.mark.timeout(600)  # seconds on a quiet machine, minutes on a busy one
CORPUS = [
    {
        "model": "gpt-4o",
        "prompt": "What is the weather in Lisbon?",
        "text": "",
        "finish_reason": "tool_calls",
        "tool_calls": [{"id": "call_1", "name": "weather", "arguments": '{"city": "Lisbon"}'}],
    }
]


def _environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.endswith(("_API_KEY", "_BASE_URL"))}
    kept.pop("EVALPIPE_DATA", None)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return kept | {"PYTHONPATH": path, "OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "k"} | more


def evalpipe(*words: str, cwd: Path, **more: str) -> str:
    done = run_here(*words, cwd=cwd, env=_environment(**more))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True, kw_only=True, slots=True)
class Set:
    """A workspace whose collector and providers run."""

    folder: Path
    url: str
    sim: str


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _wait(url: str) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.05)
    raise AssertionError(f"{url} is not there")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Set]:
    folder = tmp_path_factory.mktemp("examples")
    sim, port = _free_port(), _free_port()
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in CORPUS))
    arm = f'provider = "openai"\nbase_url = "http://127.0.0.1:{sim}"\n'
    (folder / "evalpipe.toml").write_text(
        f'[experiment]\nname = "examples"\n[arms.control]\n{arm}[arms.treatment]\n{arm}model = "new"\n'
        f'api_key_env = "OPENAI_API_KEY"\n[collector]\nport = {port}\n'
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "evalpipe", *words], cwd=folder, env=_environment(), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for words in (["sim", "--port", str(sim), "--corpus", "corpus.jsonl"], ["collect"])
    ]  # fmt: skip
    try:
        _wait(f"http://127.0.0.1:{sim}/v1/models")
        _wait(f"http://127.0.0.1:{port}/_evalpipe/ready")
        yield Set(folder=folder, url=f"http://127.0.0.1:{port}", sim=f"http://127.0.0.1:{sim}")
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(60)


APPS = ["openai_app", "anthropic_app", "rag_app", "agent_with_tools"]


@pytest.fixture(scope="module")
def printed(running: Set) -> dict[str, str]:
    """What each app printed."""
    out = {}
    for name in APPS:
        done = subprocess.run(
            [sys.executable, EXAMPLES / f"{name}.py"], cwd=running.folder,
            env=_environment(EVALPIPE_URL=running.url, PYTHONIOENCODING="utf-8"), capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        out[name] = done.stdout
    return out


def test_every_app_gets_an_answer(printed: dict[str, str]) -> None:
    assert {name: bool(text.strip()) for name, text in printed.items()} == dict.fromkeys(APPS, True)


def test_the_agent_runs_control_s_tool_call(printed: dict[str, str]) -> None:
    assert 'weather({"city": "Lisbon"})' in printed["agent_with_tools"]


def test_what_the_apps_asked_is_collected_with_its_users(printed: dict[str, str], running: Set) -> None:
    end = time.monotonic() + 120
    rows: list[dict[str, object]] = []
    while time.monotonic() < end:  # a request is loadable once its copy is answered
        evalpipe("load", cwd=running.folder)
        query = (
            "select endpoint, streamed, count(*) as n, count(distinct unit_id) as users from exchanges "
            "where arm = 'control' group by all order by all"
        )
        rows = json.loads(evalpipe("sql", "--json", query, cwd=running.folder))
        if sum(int(str(row["n"])) for row in rows) >= 5:
            break
    # One question each by three users, and two steps of the agent's user; the streamed one is Anthropic's.
    assert [(row["n"], row["users"]) for row in rows if not row["streamed"]] == [(4, 3)]
    assert [(row["n"], row["users"]) for row in rows if row["streamed"]] == [(1, 1)]
    assert json.loads(evalpipe("sql", "--json", "select rating from feedback", cwd=running.folder)) == [{"rating": 1.0}]


def test_a_prompt_is_compared_in_ci(running: Set, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, program in (("evalpipe", evalpipe_program()), ("python", sys.executable)):
        (tools / name).write_text(f'#!/bin/sh\nexec "{program}" "$@"\n')
        (tools / name).chmod(0o755)
    (tmp_path / "evalpipe.toml").write_text(f'[experiment]\nname = "prompt"\n[judge]\nbase_url = "{running.sim}"\n')
    done = subprocess.run(
        [EXAMPLES / "prompt_in_ci" / "gate.sh"], cwd=tmp_path, capture_output=True, text=True, timeout=500,
        env=_environment(PATH=f"{tools}{os.pathsep}{os.environ['PATH']}", OPENAI_BASE_URL=f"{running.sim}/v1"),
    )  # fmt: skip
    assert done.returncode == 11, done.stdout + done.stderr  # four questions decide nothing
    assert "Collect more data" in (tmp_path / "comment.md").read_text("utf-8")


def test_the_notebook_s_stored_outputs_are_what_its_cells_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evalpipe("init", ".", "--name", "demo", cwd=tmp_path)
    evalpipe("load", str(ROOT / "data/sample/log.jsonl.gz"), "--format", "spool", cwd=tmp_path)
    document = json.loads((EXAMPLES / "report.ipynb").read_text("utf-8"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    cells = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop()
        assert isinstance(last, ast.Expr)
        exec(compile(tree, "report.ipynb", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "report.ipynb", "eval"), names)
        (output,) = cell["outputs"]
        assert "".join(output["data"]["text/plain"]) == repr(value)
        assert ("text/html" in output["data"]) == hasattr(value, "_repr_html_")
    assert len(names["pairs"]) > 100  # type: ignore[arg-type]


def test_every_example_is_listed() -> None:
    text = (EXAMPLES / "README.md").read_text("utf-8")
    there = {path.name + ("/" if path.is_dir() else "") for path in EXAMPLES.iterdir()} - {"README.md", "__pycache__/"}
    assert [name for name in sorted(there) if f"`{name}`" not in text] == []
