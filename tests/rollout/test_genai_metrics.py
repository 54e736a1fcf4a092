"""OpenTelemetry's names: what a collector exposes with `[telemetry] names = "otel"`."""

from __future__ import annotations

import urllib.request
from pathlib import Path

from live import post, running, until

CONFIG = """
[experiment]
name = "otel"
mode = "ab"
treatment_percent = 50
[arms.control]
provider = "openai"
base_url = "{sim}/v1"
model = "gpt-4o"
[arms.treatment]
provider = "anthropic"
base_url = "{sim}"
model = "claude-haiku-4-5"
[collector]
port = 0
[telemetry]
names = "otel"
"""


def test_both_names_tell_the_same(tmp_path: Path) -> None:
    with running(tmp_path / "sim.log", "sim", "--port", "0", "--ttft-ms", "1", "--tokens-per-second", "5000") as sim:
        (tmp_path / "evalpipe.toml").write_text(CONFIG.format(sim=sim.url()))
        with running(tmp_path / "c.log", "collect", "--config", str(tmp_path / "evalpipe.toml")) as collector:
            url = collector.url()
            for number in range(8):
                question = {"model": "gpt-4o", "user": f"u{number}", "messages": [{"role": "user", "content": "hello"}]}
                assert post(f"{url}/v1/chat/completions", question)[0] == 200

            def lines() -> dict[str, float]:
                with urllib.request.urlopen(f"{url}/_evalpipe/metrics") as answer:
                    rows = (
                        row.rsplit(" ", 1) for row in answer.read().decode().splitlines() if not row.startswith("#")
                    )
                    return {name: float(value) for name, value in rows}

            def total(prefix: str, *words: str) -> float:
                return sum(v for k, v in lines().items() if k.startswith(prefix) and all(word in k for word in words))

            until(lambda: total("gen_ai_client_operation_duration_seconds_count") == 8)
            anthropic = (
                'gen_ai_provider_name="anthropic"',
                'gen_ai_response_model="claude-haiku-4-5"',
                'arm="treatment"',
            )
            # Either name is written out in its own time: both tell the same once all is.
            until(
                lambda: (
                    total("gen_ai_client_operation_duration_seconds_count", *anthropic)
                    == total("evalpipe_requests_total", 'arm="treatment"')
                    > 0
                )
            )
            for kind in ("input", "output"):
                until(
                    lambda kind=kind: (
                        total("gen_ai_client_token_usage_sum", f'gen_ai_token_type="{kind}"')
                        == total("evalpipe_tokens_total", f'kind="{kind}"')
                        > 0
                    )
                )
