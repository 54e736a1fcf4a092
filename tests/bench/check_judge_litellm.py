"""A judge asked through the real LiteLLM library: both dialects behind it, faults, and the provider's own bill.

Run it with a Python that has evalpipe and litellm (`make check-judge-litellm`); the providers behind are simulated.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from judge_harness import complete, finish, judged, query, say, simulated, workspace

OPEN = {"requests_per_minute": 60_000, "input_tokens_per_minute": 1e8, "output_tokens_per_minute": 1e8}
BEHIND = {"anthropic/claude-haiku-4-5": "", "openai/gpt-4o-mini": "/v1"}
"""model as LiteLLM names it → what its base URL ends with"""
FAULTS = "429=0.05,500=0.05,529=0.05,cut=0.05,malformed=0.05,refusal=0.05,max_tokens=0.05,empty=0.05"


def through_litellm(model: str, suffix: str, *, faults: str | None, n_pairs: int) -> bool:
    options = ("--faults", faults) if faults else ()
    with (
        simulated("--judge", "accuracy=0.8", "--ttft-ms", "5", *options) as sim,
        tempfile.TemporaryDirectory() as folder,
    ):
        root = workspace(Path(folder), sim.url + suffix, n_pairs=n_pairs, words=15, model=model, **OPEN)
        (root / "judges").mkdir()
        shipped = (Path(__file__).parents[2] / "judges/pairwise.toml").read_text()
        (root / "judges/pairwise.toml").write_text(shipped.replace('"anthropic"', '"litellm"', 1))
        first = judged(root, "--max-usd", "5")
        spent = query(root, "SELECT sum(cost_usd) AS usd FROM judgments")[0]["usd"]
        billed = sim.ledger()["billed"]["usd"]
        sim.post("/_sim/config", {"faults": {}})
        second = judged(root)
        failed = sum(first["failures"].values())
        # Answered twice is only what broke off on its way, and what failed and was asked again by the second run.
        broken = first["retries"].get("cut", 0) + first["retries"].get("malformed", 0)
        holds = (
            sum(first["judgments"].values()) == 2 * n_pairs
            and (faults is not None or failed == 0)
            and second["planned"] == failed
            and complete(root, n_pairs)
            and abs(spent - billed) < 0.005
            and sim.ledger()["n_answered_again"] <= broken + failed
        )
        detail = (
            f"{first['judgments']}, failures {first['failures']}, retries {first['retries']}; booked ${spent:.4f}, billed "
            f"${billed:.4f}; the second run asked {second['calls']} of {failed} failed"
        )
        return say(f"{model} through LiteLLM{' with faults' if faults else ''}", holds, detail)


if __name__ == "__main__":
    finish(
        [
            through_litellm(model, suffix, faults=faults, n_pairs=100)
            for model, suffix in BEHIND.items()
            for faults in (None, FAULTS)
        ]
    )
