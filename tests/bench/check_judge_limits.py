"""Against enforced limits: at least 97 % of the binding limit after 30 s and no 429; lowered half-way; output-bound."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from judge_harness import Sim, finish, say, simulated, start, workspace

LIMITS = {"requests": 1000, "input_tokens": 400_000, "output_tokens": 80_000}


def as_option(limits: dict[str, int]) -> str:
    return f"requests={limits['requests']},input={limits['input_tokens']},output={limits['output_tokens']}"


def usage(sim: Sim) -> dict[str, float]:
    ledger = sim.ledger()
    return {
        "requests": ledger["billed"]["billed_calls"],
        "input_tokens": ledger["billed"]["input_tokens"],
        "output_tokens": ledger["billed"]["output_tokens"],
        "429": ledger["by_kind"].get("limit", 0),
        "at": time.monotonic(),
    }


def run(limits: dict[str, int], n_pairs: int, *, lower: dict[str, int] | None = None) -> dict[str, Any]:
    """One run; samples the provider's ledger twice a second. `lower`: limits set when half of the calls are answered."""
    with (
        simulated("--limits", as_option(limits), "--judge", "accuracy=0.8") as sim,
        tempfile.TemporaryDirectory() as folder,
    ):
        root = workspace(
            Path(folder),
            sim.url,
            n_pairs=n_pairs,
            concurrency=64,
            requests_per_minute=limits["requests"],
            input_tokens_per_minute=limits["input_tokens"],
            output_tokens_per_minute=limits["output_tokens"],
        )
        process = start(root, "judge", "--json")
        samples: list[dict[str, float]] = []
        lowered_at = None
        while process.poll() is None:
            samples.append(usage(sim))
            if lower and lowered_at is None and samples[-1]["requests"] >= n_pairs:
                sim.post("/_sim/config", {"limits": lower})
                lowered_at = time.monotonic()
            time.sleep(0.5)
        summary = json.loads(process.communicate()[0])["runs"][0]
        return {"summary": summary, "samples": samples, "lowered_at": lowered_at, "end": usage(sim)}


def share(samples: list[dict[str, float]], limits: dict[str, int], begin: float, end: float) -> tuple[str, float]:
    """The most used limit between two instants, and its share."""
    window = [sample for sample in samples if begin <= sample["at"] <= end]
    first, last = window[0], window[-1]
    minutes = (last["at"] - first["at"]) / 60
    shares = {kind: (last[kind] - first[kind]) / (limit * minutes) for kind, limit in limits.items()}
    kind = max(shares, key=lambda name: shares[name])
    return kind, shares[kind]


def active(found: dict[str, Any]) -> tuple[float, float]:
    """From the first answer to just before the last (the tail is not the limiter's)."""
    samples = found["samples"]
    first = next(sample["at"] for sample in samples if sample["requests"])
    last = next(sample["at"] for sample in samples if sample["requests"] >= 0.98 * found["end"]["requests"])
    return first, last


def steady(name: str, limits: dict[str, int], n_pairs: int) -> bool:
    found = run(limits, n_pairs)
    first, last = active(found)
    kind, used = share(found["samples"], limits, first + 30, last)
    ok = found["summary"]["judgments"].get("ok", 0) + found["summary"]["judgments"].get("identical", 0)
    holds = used >= 0.97 and found["end"]["429"] == 0 and ok == 2 * n_pairs
    return say(name, holds, f"{used:.1%} of {kind} after 30 s, {found['end']['429']} × 429, {ok} of {2 * n_pairs} judged, "
               f"{last - first:.0f} s")  # fmt: skip


def lowered(n_pairs: int) -> bool:
    half = {kind: limit // 2 for kind, limit in LIMITS.items()}
    found = run(LIMITS, n_pairs, lower=half)
    at, (_, last) = found["lowered_at"], active(found)
    before = max(sample["429"] for sample in found["samples"] if sample["at"] < at)
    kind, used = share(found["samples"], half, at + 5, last)
    n_429 = found["end"]["429"]
    ok = found["summary"]["judgments"].get("ok", 0) + found["summary"]["judgments"].get("identical", 0)
    holds = before == 0 and n_429 <= 8 and 0.9 <= used <= 1.03 and ok == 2 * n_pairs
    return say("limits halved half-way", holds, f"{used:.1%} of the halved {kind} from 5 s on, {n_429} × 429, {ok} of "
               f"{2 * n_pairs} judged")  # fmt: skip


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["steady", "lowered", "output"]
    results = []
    if "steady" in wanted:
        results.append(steady("limits as stated", LIMITS, 1000))
    if "lowered" in wanted:
        results.append(lowered(500))
    if "output" in wanted:
        results.append(steady("output-bound", {**LIMITS, "input_tokens": 4_000_000, "output_tokens": 40_000}, 1000))
    finish(results)
