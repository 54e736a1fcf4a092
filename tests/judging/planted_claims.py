"""A hundred questions with a context of five facts, and answers in which a fifth of the claims is not from it."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

SUBJECTS = ["museum", "library", "harbour", "castle", "theatre", "garden", "bakery", "observatory", "station", "market"]
FACTS = (
    "{s} number {n} opens daily around {h} hours|{s} number {n} charges {p} euros entrance|{s} number {n} employs {w} workers|"
    "{s} number {n} stands beside river Lauter|{s} number {n} sells illustrated postcards"
)
INVENTED = (
    "Its founder was an astronaut from Norway",
    "Visitors receive complimentary umbrellas",
    "Dragons guard the basement",
)


def planted_pairs(*, seed: int = 4) -> tuple[list[dict[str, Any]], dict[tuple[str, str], Counter[str]]]:
    """Pairs in the format `pairs`, five claims in each answer, and by pair and arm how many of each kind.

    Kinds: "true", "invented", "number" (the fact with another number) and, a tenth of the planted ones, "own words" (made of the
    context's own words, which a rule about words cannot find).
    """
    rng = random.Random(seed)
    documents, kinds = [], {}
    for n in range(100):
        facts = FACTS.format(s=SUBJECTS[n % 10], n=n, h=7 + n % 5, p=3 + n % 4, w=20 + n % 7).split("|")
        sides = []
        for arm in ("control", "treatment"):
            answer, of_answer = [], Counter[str]()
            for fact in facts:
                kind = "true"
                if rng.random() < 0.2:
                    kind = rng.choices(["invented", "number", "own words"], [45, 45, 10])[0]
                if kind == "number" and not any(word in fact for word in ("euros", "workers", "around")):
                    kind = "invented"
                answer.append(_claim(fact, kind, facts, rng))
                of_answer[kind] += 1
            sides.append(". ".join(answer) + ".")
            kinds[f"p{n}", arm] = of_answer
        documents.append(
            {
                "pair_id": f"p{n}",
                "prompt": f"question p{n}",
                "response_a": sides[0],
                "response_b": sides[1],
                "context": ". ".join(facts) + ".",
                "unit_id": f"u{n}",
            }
        )
    return documents, kinds


def _claim(fact: str, kind: str, facts: list[str], rng: random.Random) -> str:
    if kind == "invented":
        return rng.choice(INVENTED)
    words = fact.split()
    if kind == "number":
        return " ".join("9999" if word.isdigit() and n > 3 else word for n, word in enumerate(words))
    if kind == "own words":  # true of no context: the beginning of one fact, the end of another
        return " ".join([*words[:3], "sells", *facts[1].split()[-1:]])
    return fact
