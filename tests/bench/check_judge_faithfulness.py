"""Answers with planted unsupported claims, judged by a real small model with judges/faithfulness.toml's instructions.

A fifth of the claims in 200 answers to 100 questions is not from the context (tests/judging/planted_claims.py). Printed is how
many answers the model judges, and of those with a planted claim the share whose score it lowers, with Wilson's interval, beside
the share of the answers without one that it accuses. Needs `pip install 'evalpipe[local]'`, here or in the Python that
LOCAL_PYTHON names; LOCAL_MODEL: the model.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from judge_harness import evalpipe, finish, query, say, served_model, workspace
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).parents[1] / "judging"))

from planted_claims import planted_pairs

ROOT = Path(__file__).resolve().parents[2]
MODEL = os.environ.get("LOCAL_MODEL", "smollm2-135m-instruct")


def share(n: int, of: int) -> str:
    interval = binomtest(n, of).proportion_ci(method="wilson")
    return f"{n} of {of} ({n / of:.2f}, {interval.low:.2f} to {interval.high:.2f})"


def main() -> bool:
    documents, kinds = planted_pairs()
    with served_model(MODEL) as url, tempfile.TemporaryDirectory() as folder:
        root = workspace(Path(folder), url, concurrency=2, name="small", model=MODEL, max_attempts=1)
        (root / "judges").mkdir()
        shipped = (ROOT / "judges/faithfulness.toml").read_text()
        settings = {"provider": "openai", "model": MODEL, "api_key_env": "UNUSED", "timeout_s": 600, "max_tokens": 240}
        kept = [line for line in shipped.splitlines() if line.partition(" =")[0] not in settings]
        lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        (root / "judges/small.toml").write_text("\n".join(lines + kept))
        (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, documents)))
        evalpipe(root, "load", "--format", "pairs", "pairs.jsonl")
        run = json.loads(evalpipe(root, "judge", "--json").stdout)["runs"][0]
        rows = query(
            root,
            "SELECT request_id, control_scores['faithfulness'] AS control, treatment_scores['faithfulness'] AS treatment "
            "FROM judgments WHERE status = 'ok'",
        )
    scores = {
        (row["request_id"], arm): row[arm] for row in rows for arm in ("control", "treatment") if row[arm] is not None
    }
    answers = {True: [0, 0], False: [0, 0]}
    """by whether a claim was planted: answers with a lowered score, answers with a score"""
    for answer, score in scores.items():
        of = answers[kinds[answer]["true"] < kinds[answer].total()]
        of[0] += score < 1
        of[1] += 1
    found = ", ".join(
        f"{name}: {share(*answers[planted])}" if answers[planted][1] else f"{name}: none was judged"
        for planted, name in ((True, "lowered with a planted claim"), (False, "lowered without one"))
    )
    return say(f"{MODEL}, faithfulness", run["judgments"] != {}, f"judgments {run['judgments']}; {found}")


if __name__ == "__main__":
    finish([main()])
