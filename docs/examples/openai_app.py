"""A chat over OpenAI's SDK behind the collector: only the address changes."""

import json
import os
import urllib.request

import openai

COLLECTOR = os.environ.get("EVALPIPE_URL", "http://127.0.0.1:8400")
client = openai.OpenAI(base_url=f"{COLLECTOR}/v1")


def ask(question: str, *, user: str, conversation: str) -> str:
    """Answer one question. The user's id makes intervals right; the conversation's keeps turns together."""
    raw = client.chat.completions.with_raw_response.create(
        model="gpt-4o",
        messages=[
            {"role": "system", "content": "Answer in one sentence."},
            {"role": "user", "content": question},
        ],
        user=user,
        extra_headers={"x-evalpipe-conversation": conversation},
    )
    rate(raw.headers["x-evalpipe-request-id"], "up")
    return raw.parse().choices[0].message.content or ""


def rate(request_id: str, rating: str) -> None:
    """Pass a user's thumb on: it is tied to the answer by the id that came with it."""
    body = json.dumps({"request_id": request_id, "rating": rating}).encode()
    with urllib.request.urlopen(f"{COLLECTOR}/_evalpipe/feedback", data=body, timeout=10):
        pass


if __name__ == "__main__":
    print(ask("Why is the sky blue?", user="u-4711", conversation="c-1"))
