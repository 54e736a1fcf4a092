"""A streamed answer over Anthropic's SDK behind the collector."""

import os

import anthropic

COLLECTOR = os.environ.get("EVALPIPE_URL", "http://127.0.0.1:8400")
client = anthropic.Anthropic(base_url=COLLECTOR)


def ask(question: str, *, user: str) -> str:
    """Print the answer as it comes, and return it."""
    pieces = []
    with client.messages.stream(
        model="claude-sonnet-4-5",
        max_tokens=200,
        messages=[{"role": "user", "content": question}],
        metadata={"user_id": user},
    ) as stream:
        for piece in stream.text_stream:
            print(piece, end="", flush=True)
            pieces.append(piece)
    print()
    return "".join(pieces)


if __name__ == "__main__":
    ask("Why is the sky blue?", user="u-4711")
