"""A collector needs few packages: it runs, shadows and logs where none of the others can be imported."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path

from collector_harness import CHAT, RawUpstream, Script, chat_answer, chat_request, eventually, plain, read_spool
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from evalpipe.spool.format import ResponseRecord

ROOT = Path(__file__).resolve().parents[2]
NEEDED = frozenset(
    {
        "brotli",
        "genai-prices",
        "httptools",
        "httpx2",  # of genai-prices
        "msgspec",
        "prometheus-client",
        "pydantic",
        "pydantic-core",
        "typer",
        "uvloop",
        "zstandard",
    }
)
"""distributions of a collector that does not load by itself, redacts no phone numbers and uses no LiteLLM"""

REFUSAL = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"refused by the test: {{name}}", name=name)

sys.meta_path.insert(0, Refused())
"""
CONFIG = """
[experiment]
name = "alone"
[arms.control]
provider = "openai"
base_url = "{url}/v1"
[arms.treatment]
provider = "anthropic"
base_url = "{url}"
model = "claude-haiku-4-5"
api_key_env = "TREATMENT_KEY"
[collector]
redact = ["email", "card"]
"""


def other_modules() -> set[str]:
    """The import names of the project's other dependencies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    others = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]} - NEEDED
    return {
        module
        for module, found in packages_distributions().items()
        if any(canonicalize_name(one) in others for one in found)
    }


def test_a_collector_runs_without_the_packages_of_analysis_and_judging(
    tmp_path: Path, upstream: Callable[[Script], RawUpstream]
) -> None:
    refused = other_modules()
    assert {"pandas", "pyarrow", "duckdb", "scipy", "numpy", "anthropic", "openai", "jinja2", "starlette"} <= refused
    (tmp_path / "sitecustomize.py").write_text(REFUSAL.format(names=sorted(refused)))
    server = upstream(lambda got: [plain(chat_answer())])
    (tmp_path / "evalpipe.toml").write_text(CONFIG.format(url=server.url))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EVALPIPE_")}
    paths = [str(tmp_path), str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-m", "evalpipe", "collect", "--port", "0"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": os.pathsep.join(paths), "TREATMENT_KEY": "sk-ant-test"},
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: list[str] = []
    assert process.stderr is not None
    reader = threading.Thread(target=lines.extend, args=(process.stderr,), daemon=True)
    reader.start()
    try:
        listening = re.compile(r"listening on http://127\.0\.0\.1:(\d+)")
        eventually(lambda: process.poll() is not None or listening.search("".join(lines)) is not None, timeout=60)
        found = listening.search("".join(lines))
        assert found is not None, lines
        client = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=20)
        client.request("POST", CHAT, chat_request("mail me at a@example.com"), {"content-type": "application/json"})
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (200, chat_answer())
        client.close()
        spool = tmp_path / "data" / "spool"
        eventually(
            lambda: (
                {one.arm for one in read_spool(spool) if isinstance(one, ResponseRecord)} == {"control", "treatment"}
            ),
            timeout=30,
        )
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)
        reader.join(10)
        process.stderr.close()
    assert code == 0, lines
    assert not [line for line in lines if "refused by the test" in line or " ERROR " in line]
