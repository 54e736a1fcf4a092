"""A real small model as judge: llama.cpp's server on this machine, 50 labelled pairs; it must be found not to be trusted.

Needs `pip install 'evalpipe[local]'`, here or in the Python that LOCAL_PYTHON names.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from judge_harness import evalpipe, finish, say, served_model, workspace

SHARED = Path(os.environ.get("EVALPIPE_SHARED", Path(__file__).parents[3] / "shared"))
PAIRS = SHARED / "data/pairs/llmbar_natural.jsonl"
MODEL = os.environ.get("LOCAL_MODEL", "smollm2-135m-instruct")
TOML = f"""
mode = "pairwise"
provider = "openai"
model = "{MODEL}"
template = "pairwise.j2"
reasoning = false
max_tokens = 120
max_request_chars = 1200
max_response_chars = 1200
timeout_s = 600
[dimensions]
accuracy = "Is it correct?"
"""


def main(n_pairs: int) -> bool:
    with served_model(MODEL) as url, tempfile.TemporaryDirectory() as folder:
        root = workspace(Path(folder), url, concurrency=2, name="small", model=MODEL)
        (root / "judges").mkdir()
        (root / "judges/small.toml").write_text(TOML)
        lines = PAIRS.read_text(encoding="utf-8").splitlines()
        kept = []
        for line in sorted(lines, key=len)[:n_pairs]:
            pair = json.loads(line)
            pair["judgements"] = []
            kept.append(json.dumps(pair))
        (root / "pairs.jsonl").write_text("\n".join(kept))
        evalpipe(root, "load", "--format", "pairs", "pairs.jsonl")
        started = time.monotonic()
        run = json.loads(evalpipe(root, "judge", "--json").stdout)["runs"][0]
        seconds = time.monotonic() - started
        audit = json.loads(evalpipe(root, "judge", "--audit", "--json").stdout)["audits"][0]
        test = json.loads(evalpipe(root, "judge", "--self-test", "--json", check=False).stdout)["self_tests"][0]
    print(
        json.dumps(
            {"run": run, "audit": audit, "self_test": {k: test[k] for k in ("trusted", "reasons", "shares")}},
            indent=1,
        )
    )
    held = audit["trusted"] is False and test["trusted"] is False
    detail = (
        f"{n_pairs} pairs in {seconds:.0f} s, {run['judgments']}; audit: {audit['reasons']}; "
        f"self-test: {test['reasons']}"
    )
    return say(f"{MODEL} as judge", held, detail)


if __name__ == "__main__":
    finish([main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)])
