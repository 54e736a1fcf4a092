"""The real LiteLLM, as a proxy and as a library, as the treatment arm: pairs with tokens and cost. By `make check-litellm`.

Run it with a Python that has evalpipe and litellm[proxy]; the providers behind are simulated.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from live import Process, post, running, until

from evalpipe.store.query import open_store
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import Workspace, open_workspace

CONFIG = """
[experiment]
name = "litellm"
mode = "{mode}"
treatment_percent = 100
[arms.control]
provider = "openai"
base_url = "{sim}/v1"
model = "gpt-4o"
[arms.treatment]
provider = "litellm"
{treatment}
[collector]
port = 0
"""
PROXY_CONFIG = """
model_list:
  - model_name: through-proxy
    litellm_params: {{ model: anthropic/claude-haiku-4-5, api_base: "{sim}", api_key: k }}
general_settings: {{ master_key: sk-proxy }}
"""
LIBRARY = """
model = "anthropic/claude-haiku-4-5"
api_key_env = "PROXY_KEY"
params = {{ api_base = "{sim}", max_tokens = 200 }}
"""
PROXY = """
base_url = "http://127.0.0.1:{port}/v1"
model = "through-proxy"
api_key_env = "PROXY_KEY"
[prices."through-proxy"]
input = 1.0
output = 5.0
"""
N = 20


def ask(collector: Process) -> None:
    url = collector.url()
    for number in range(N):
        question = {"model": "gpt-4o", "messages": [{"role": "user", "content": f"question {number}"}]}
        streamed = {"stream": True, "stream_options": {"include_usage": True}} if number % 2 else {}
        status, _, body = post(f"{url}/v1/chat/completions", {**question, **streamed}, {"x-user-id": f"u{number}"})
        assert status == 200, body


def measure(workspace: Workspace, mode: str, words: str) -> bool:
    load(workspace)
    with open_store(workspace.data, "litellm") as store:
        n, ok, tokens, cost, model = store.connection.execute(
            "SELECT count(*), count(*) FILTER (outcome = 'ok'), count(output_tokens), count(cost_usd), any_value(model) "
            "FROM exchanges WHERE arm = 'treatment'"
        ).fetchall()[0]
        pairs = store.connection.execute("SELECT count(*) FROM pairs").fetchall()[0][0]
    good = n == ok == tokens == cost == N and (mode != "shadow" or pairs == N)
    print(
        f"{'ok    ' if good else 'FAIL  '}{words}, {mode}: {n} treatment answers, {ok} ok, {tokens} with tokens, "
        f"{cost} with cost, {pairs} pairs; model {model}",
        flush=True,
    )
    return bool(good)


def run(sim: str, mode: str, treatment: str, words: str) -> bool:
    folder = Path(tempfile.mkdtemp(prefix="evalpipe-litellm-"))
    (folder / "evalpipe.toml").write_text(CONFIG.format(mode=mode, sim=sim, treatment=treatment))
    with running(
        folder / "c.log", "collect", "--config", str(folder / "evalpipe.toml"), env={"PROXY_KEY": "sk-proxy"}
    ) as collector:
        ask(collector)
    return measure(open_workspace(root=folder), mode, words)


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="evalpipe-litellm-"))
    good = True
    with running(folder / "sim.log", "sim", "--port", "0", "--ttft-ms", "1", "--tokens-per-second", "5000") as process:
        sim = process.url()
        library = LIBRARY.format(sim=sim)
        for mode in ("shadow", "ab"):
            good &= run(sim, mode, library, "library in process")
        (folder / "proxy.yaml").write_text(PROXY_CONFIG.format(sim=sim))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with (folder / "proxy.log").open("wb") as log:
            command = [
                str(Path(sys.executable).with_name("litellm")),
                "--config",
                str(folder / "proxy.yaml"),
                "--port",
                str(port),
            ]
            proxy = subprocess.Popen(
                [*command, "--host", "127.0.0.1"],
                stdout=log,
                stderr=log,
                env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
            )
        try:
            until(lambda: b"Uvicorn running" in (folder / "proxy.log").read_bytes(), 120, str(folder / "proxy.log"))
            treatment = PROXY.format(port=port)
            for mode in ("shadow", "ab"):
                good &= run(sim, mode, treatment, "proxy")
        finally:
            proxy.terminate()
            proxy.wait()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
