"""Answer the same questions with two versions of a system prompt, one line of a pairs file each."""

import json
import os
import time
from pathlib import Path

import openai

HERE = Path(__file__).resolve().parent
client = openai.OpenAI(base_url=os.environ.get("OPENAI_BASE_URL"))
PROMPTS = {"a": (HERE / "old.txt").read_text("utf-8"), "b": (HERE / "new.txt").read_text("utf-8")}
MODEL = "gpt-4o-mini"


def main() -> None:
    """Print the pairs: a is what is in use, b what the pull request changes."""
    for number, line in enumerate((HERE / "questions.txt").read_text("utf-8").splitlines()):
        pair = {"pair_id": f"q{number}", "unit_id": f"q{number}", "prompt": line, "model_a": MODEL, "model_b": MODEL}
        for side, prompt in PROMPTS.items():
            begun = time.perf_counter()
            answer = client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "system", "content": prompt}, {"role": "user", "content": line}],
            )
            pair |= {
                f"response_{side}": answer.choices[0].message.content or "",
                f"latency_ms_{side}": (time.perf_counter() - begun) * 1000,
            }
        print(json.dumps(pair))


if __name__ == "__main__":
    main()
