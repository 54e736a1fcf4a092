"""The stated rules by which the `checks` judge prefers an answer: checkable facts, no measurement of quality.

Every answer begins with 9 points and loses, down to 0:

| rule | points |
|---|---|
| empty: no words at all | 9 |
| echo: most of it repeats the request's own words in the request's order | 4 |
| language: another language than asked for (named in the request, else the request's own), where both can be told | 3 |
| format: JSON asked for and it does not parse; code asked for and there is none; a list asked for and there is none | 3 |
| loop: one sentence or line stands there three times or more | 3 |
| cut: it ended at its token limit | 2 |
| refused: it was marked as a refusal | 2 |

The answer with more points wins; equal points are a tie.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass

FULL = 9
PENALTIES = {"empty": 9, "echo": 4, "language": 3, "format": 3, "loop": 3, "cut": 2, "refused": 2}

_LANGUAGES = {
    "english": "the and is of to in that for with you are this it as on be have can not your",
    "german": "der die das und ist nicht ein eine mit für auf sie den von zu im auch ich wir sind wie",
    "french": "le la les et est un une il elle des pour dans que qui avec sur vous pas du au nous sont ce votre",
    "spanish": "el la los las y es un una de que en para con por no del su se como está más usted",
    "italian": "il la che è di un una per con non del della sono come più gli nel anche questo si",
    "portuguese": "o a os as e é de que em um uma para com não do da se por mais como você",
    "dutch": "de het een en is van dat niet te op voor met zijn aan ook maar bij wordt naar je",
}
_STOPWORDS = {name: frozenset(words.split()) for name, words in _LANGUAGES.items()}
_OWN_NAMES = {
    "deutsch": "german", "français": "french", "francais": "french", "español": "spanish", "espanol": "spanish",
    "italiano": "italian", "português": "portuguese", "nederlands": "dutch",
}  # fmt: skip
_SCRIPTS = (
    ("russian", re.compile("[\u0400-\u04ff]")),
    ("greek", re.compile("[\u0370-\u03ff]")),
    ("arabic", re.compile("[\u0600-\u06ff]")),
    ("hebrew", re.compile("[\u0590-\u05ff]")),
    ("hindi", re.compile("[\u0900-\u097f]")),
    ("korean", re.compile("[\uac00-\ud7af]")),
    ("japanese", re.compile("[\u3040-\u30ff]")),
    ("chinese", re.compile("[\u4e00-\u9fff]")),
)
_NAMES = "|".join([*_LANGUAGES, *_OWN_NAMES, *(name for name, _ in _SCRIPTS)])
_ASKED_LANGUAGE = re.compile(rf"\b(?:in|into|to|auf|en|in het|em)\s+({_NAMES})\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?\n]")
_FENCED = re.compile(r"```\w*\n(.*?)```", re.DOTALL)
_CODE = re.compile(
    r"```|^\s*(?:def|class|import|from|SELECT|function|const|let|var|public|#include|<\w+)\b|[;{}]\s*$", re.M | re.I
)
_LIST = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+\S", re.MULTILINE)
_ASKS_JSON = re.compile(r"\bjson\b", re.IGNORECASE)
_ASKS_CODE = re.compile(
    r"\b(?:write|give|show|create|implement|fix)\b.{0,60}\b(?:code|function|script|program|query|html|sql|regex|class)\b",
    re.I,
)
_ASKS_LIST = re.compile(
    r"\b(?:bullet(?:ed)? (?:points?|list)|numbered list|as a list|list of (?:\d|three|four|five))", re.I
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """An answer's points in 0..9, and the rules it broke."""

    points: int
    broken: tuple[str, ...]


def check(request: str, answer: str, state: str | None) -> Checked:
    """The points of an answer. `state`: empty | refused | truncated | None, as the judge's prompt tells it."""
    if state == "empty" or not answer.strip():
        return Checked(points=0, broken=("empty",))
    rules = {
        "echo": _echoes(request, answer),
        "language": _other_language(request, answer),
        "format": _wrong_format(request, answer),
        "loop": _loops(answer),
        "cut": state == "truncated",
        "refused": state == "refused",
    }
    broken = tuple(name for name, is_broken in rules.items() if is_broken)
    return Checked(points=max(FULL - sum(PENALTIES[name] for name in broken), 0), broken=broken)


def language(text: str) -> str | None:
    """The language a text is most likely in, None where it cannot be told."""
    letters = sum(char.isalpha() for char in text)
    for name, script in _SCRIPTS:
        if letters and len(script.findall(text)) > 0.3 * letters:
            return name
    words = [word.lower() for word in _WORD.findall(text[:5000])]
    hits = Counter({name: sum(word in known for word in words) for name, known in _STOPWORDS.items()})
    (best, n_best), (_, n_next) = hits.most_common(2)
    return best if n_best >= 3 and n_best > 1.3 * n_next else None


def asked_language(request: str) -> str | None:
    named: list[str] = _ASKED_LANGUAGE.findall(request)
    if named:
        name = named[-1].lower()
        return _OWN_NAMES.get(name, name)
    return language(request)


def _other_language(request: str, answer: str) -> bool:
    asked, found = asked_language(request), language(answer)
    return asked is not None and found is not None and asked != found


def _wrong_format(request: str, answer: str) -> bool:
    if _ASKS_JSON.search(request):
        return not _is_json(answer)
    if _ASKS_CODE.search(request):
        return _CODE.search(answer) is None
    return _ASKS_LIST.search(request) is not None and len(_LIST.findall(answer)) < 2


def _is_json(answer: str) -> bool:
    fenced = _FENCED.findall(answer)
    try:
        json.loads(fenced[0] if len(fenced) == 1 else answer)
    except (ValueError, RecursionError):
        return False
    return True


def _echoes(request: str, answer: str) -> bool:
    said, asked = _words(answer), _words(request)
    if len(said) < 4:
        return False
    grams = {tuple(asked[i : i + 4]) for i in range(len(asked) - 3)}
    own = [tuple(said[i : i + 4]) for i in range(len(said) - 3)]
    return sum(gram in grams for gram in own) > 0.6 * len(own)


def _loops(answer: str) -> bool:
    pieces = Counter(" ".join(piece.split()).lower() for piece in _SENTENCE.findall(answer + "\n"))
    return any(n >= 3 and len(piece) >= 12 for piece, n in pieces.items())


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text[:20_000])]
