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
        "phonenumberslite",
        "prometheus-client",
        "pydantic",
        "pydantic-core",
        "typer",
        "uvloop",
        "zstandard",
    }
)
"""distributions of a collector that does not load by itself and uses no LiteLLM"""

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
redact = ["email", "card", "phone"]
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


def only_needed(folder: Path) -> dict[str, str]:
    """The environment of a process that finds none of the project's other dependencies."""
    refused = other_modules()
    assert {"pandas", "pyarrow", "duckdb", "scipy", "numpy", "anthropic", "openai", "jinja2", "starlette"} <= refused
    (folder / "sitecustomize.py").write_text(REFUSAL.format(names=sorted(refused)))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EVALPIPE_")}
    paths = [str(folder), str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}


def test_a_collector_runs_without_the_packages_of_analysis_and_judging(
    tmp_path: Path, upstream: Callable[[Script], RawUpstream]
) -> None:
    environment = only_needed(tmp_path)
    server = upstream(lambda got: [plain(chat_answer())])
    (tmp_path / "evalpipe.toml").write_text(CONFIG.format(url=server.url))
    process = subprocess.Popen(
        [sys.executable, "-m", "evalpipe", "collect", "--port", "0"],
        cwd=tmp_path,
        env={**environment, "TREATMENT_KEY": "sk-ant-test"},
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
        client.request(
            "POST",
            CHAT,
            chat_request("mail me at a@example.com or call (415) 555-2671"),
            {"content-type": "application/json"},
        )
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


def test_another_command_names_the_package_that_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "evalpipe", "report"],
        cwd=tmp_path,
        env=only_needed(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"evalpipe: this command needs the package \w+, .*install evalpipe with all its packages .*\n", done.stderr
    )


def test_the_packages_of_a_collector_are_those_of_the_documentation() -> None:
    page = (ROOT / "docs" / "how-to" / "collect.md").read_text("utf-8")
    found = re.search(r"\npip install ([^\n]*)\npip install --no-deps", page)
    assert found is not None
    # httpx2 comes with genai-prices, pydantic-core with pydantic
    assert set(found[1].split()) == NEEDED - {"httpx2", "pydantic-core"}


def test_loading_beside_it_is_refused_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "evalpipe.toml").write_text(CONFIG.format(url="http://127.0.0.1:9"))
    done = subprocess.run(
        [sys.executable, "-m", "evalpipe", "collect", "--port", "0", "--load-every", "1m"],
        cwd=tmp_path,
        env={**only_needed(tmp_path), "TREATMENT_KEY": "sk-ant-test"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in (1, 2)
    assert done.stderr.count("\n") == 1, "it does not begin to serve"
    assert "pyarrow" in done.stderr
