"""Answers from documents. Retrieval runs once, in the application, so both models get the same context."""

import os
import re

import openai

client = openai.OpenAI(base_url=os.environ.get("EVALPIPE_URL", "http://127.0.0.1:8400") + "/v1")
DOCUMENTS = {
    "returns": "Goods can be returned within 30 days, unused and in their box.",
    "shipping": "Orders before 14:00 are shipped on the same day. Delivery takes two days.",
    "warranty": "All devices have a warranty of two years.",
}


def retrieve(question: str) -> list[str]:
    """The two documents that share most words with the question."""
    words = set(re.findall(r"\w+", question.lower()))
    ranked = sorted(DOCUMENTS.values(), key=lambda text: -len(words & set(re.findall(r"\w+", text.lower()))))
    return ranked[:2]


def ask(question: str, *, user: str) -> str:
    """Answer from the documents only."""
    context = "\n".join(f"- {text}" for text in retrieve(question))
    answer = client.chat.completions.create(
        model="gpt-4o",
        messages=[
            {"role": "system", "content": f"Answer from these documents only:\n{context}"},
            {"role": "user", "content": question},
        ],
        user=user,
    )
    return answer.choices[0].message.content or ""


if __name__ == "__main__":
    print(ask("How many days does delivery take?", user="u-1"))
