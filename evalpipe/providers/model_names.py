"""What follows from a model's name: its family, and which parameters it takes."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import re
from functools import lru_cache

_FAMILIES = (
    ("claude", re.compile(r"claude|anthropic")),
    ("gpt", re.compile(r"\bgpt|(^|/)o\d\b|chatgpt|davinci|openai")),
    ("gemini", re.compile(r"gemini|palm|bison")),
    ("gemma", re.compile(r"gemma")),
    ("llama", re.compile(r"llama|vicuna|alpaca")),
    ("mistral", re.compile(r"mi[sx]tral|ministral|codestral")),
    ("qwen", re.compile(r"qwen|qwq")),
    ("deepseek", re.compile(r"deepseek")),
    ("grok", re.compile(r"grok")),
    ("phi", re.compile(r"\bphi\b|phi-")),
    ("smollm", re.compile(r"smollm")),
    ("command", re.compile(r"command-r|command-a|cohere")),
    ("nova", re.compile(r"\bnova-")),
)
_CLAUDE = re.compile(r"claude-(?:[a-z]+-)?(\d{1,2})(?:[-.](\d{1,2}))?(?!\d)")
_OPENAI_REASONING = re.compile(r"(?:^|/)(?:o\d|gpt-(?:[5-9]|\d\d))(?!\d)")


@lru_cache(maxsize=1024)
def family(model: str | None) -> str | None:
    """The family of a model name ("claude", "gpt", "llama", …), None where the name shows none."""
    if not model:
        return None
    lower = model.lower()
    return next((name for name, pattern in _FAMILIES if pattern.search(lower)), None)


def same_family(first: str | None, second: str | None) -> bool:
    """Whether both models are known to be of one family: a judge may then prefer its kin."""
    known = family(first)
    return known is not None and known == family(second)


_DATE = re.compile(r"[-@_:]?(?:latest|20\d{2}-?[01]\d-?[0-3]\d)$")


@lru_cache(maxsize=4096)
def same_model(first: str | None, second: str | None) -> bool:
    """Whether two names are one model's: a provider's prefix, case, punctuation and a date that only one of them has behind
    it do not count (openai/GPT-4o and gpt-4o-2024-08-06; gpt4_1106_preview and gpt-4-1106-preview)."""
    if not first or not second:
        return False
    one, other = (name.lower().rsplit("/", 1)[-1] for name in (first, second))
    return (
        _bare(one) == _bare(other)
        or _bare(_DATE.sub("", one)) == _bare(other)
        or _bare(one) == _bare(_DATE.sub("", other))
    )


def _bare(name: str) -> str:
    return re.sub(r"[\W_]", "", name)


@lru_cache(maxsize=1024)
def takes_max_completion_tokens(model: str) -> bool:
    """Whether the model requires `max_completion_tokens` where others take `max_tokens` (OpenAI's o-series, GPT-5 and on)."""
    return _OPENAI_REASONING.search(model.lower()) is not None


@lru_cache(maxsize=1024)
def takes_sampling(model: str) -> bool:
    """Whether `temperature`, `top_p` and the like may be sent: OpenAI's reasoning models and Claude from Opus 4.7 and
    the fifth generation on answer 400 to them."""
    lower = model.lower()
    return not (takes_max_completion_tokens(lower) or is_newer_claude(lower))


@lru_cache(maxsize=1024)
def is_newer_claude(model: str) -> bool:
    """Claude from 4.7 on: no sampling parameters, no `thinking.budget_tokens`, no assistant prefill."""
    return "claude-mythos" in model.lower() or _claude_version(model) >= (4, 7)


@lru_cache(maxsize=1024)
def takes_adaptive_thinking(model: str) -> bool:
    """Claude from 4.6 on decides by itself how long to think."""
    return is_newer_claude(model) or _claude_version(model) >= (4, 6)


def _claude_version(model: str) -> tuple[int, int]:
    """(major, minor), (0, 0) for anything else. The date of claude-sonnet-4-20250514 is no minor version."""
    match = _CLAUDE.search(model.lower())
    return (0, 0) if match is None else (int(match[1]), int(match[2] or 0))
