"""Text made up for prompts no corpus knows: the same for the same request, of plausible length, and JSON where JSON is due."""

from __future__ import annotations

import hashlib
import random
from typing import Any

from evalpipe.providers.jsontext import as_dict, as_list, dump

_WORDS = [
    "the", "answer", "depends", "on", "what", "you", "measure", "and", "how", "often", "it", "changes", "so",
    "start", "with", "small", "steps", "keep", "notes", "compare", "both", "results", "before", "deciding", "ask",
    "again", "when", "something", "looks", "odd", "most", "people", "find", "that", "clear", "examples", "help",
    "more", "than", "long", "explanations", "while", "careful", "checks", "save", "time", "later", "and", "a",
    "short", "summary", "at", "the", "end", "makes", "it", "easy", "to", "remember",
]  # fmt: skip
CHARACTERS_PER_TOKEN = 4


def count_tokens(text: str) -> int:
    """Tokens of a text, four characters each: simulated models have no tokenizer."""
    return (len(text) + CHARACTERS_PER_TOKEN - 1) // CHARACTERS_PER_TOKEN


def seeded(*parts: object) -> random.Random:
    """A random generator that depends on `parts` alone."""
    return random.Random(hashlib.sha256(repr(parts).encode("utf-8", "replace")).digest())


def made_up_text(rng: random.Random) -> str:
    """A few sentences, 15 to 120 words."""
    left = rng.randint(15, 120)
    sentences = []
    while left > 0:
        words = rng.choices(_WORDS, k=min(left, rng.randint(6, 16)))
        left -= len(words)
        sentences.append(" ".join(words).capitalize() + ".")
    return " ".join(sentences)


def made_up_json(schema: Any, rng: random.Random) -> str:
    """A JSON text that follows the schema's types, enums and properties."""
    root = as_dict(schema)
    return dump(_value(root, root, rng, depth=0))


def _value(schema: dict[str, Any], root: dict[str, Any], rng: random.Random, depth: int) -> Any:
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        definitions = as_dict(root.get("$defs")) or as_dict(root.get("definitions"))
        return _value(as_dict(definitions.get(name)), root, rng, depth + 1) if depth < 20 else None
    if as_list(schema.get("enum")):
        return rng.choice(schema["enum"])
    if "const" in schema:
        return schema["const"]
    for key in ("anyOf", "oneOf", "allOf"):
        if as_list(schema.get(key)):
            return _value(as_dict(schema[key][0]), root, rng, depth + 1)
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object" or "properties" in schema:
        properties = as_dict(schema.get("properties"))
        return {name: _value(as_dict(inner), root, rng, depth + 1) for name, inner in properties.items()}
    if kind == "array":
        return [_value(as_dict(schema.get("items")), root, rng, depth + 1) for _ in range(rng.randint(1, 3))]
    simple: dict[Any, Any] = {
        "integer": rng.randint(0, 10),
        "number": round(rng.uniform(0, 10), 2),
        "boolean": rng.random() < 0.5,
        "null": None,
    }
    return simple.get(kind, " ".join(rng.choices(_WORDS, k=rng.randint(1, 6))))
