"""Two lists of answers → pairs: by id, else by equal prompt. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from evalpipe.identity import fingerprint
from evalpipe.models import Arm, Exchange

_LAST_USER = re.compile(r"(?:\A|\n\n)\[user\]\n((?:(?!\n\n\[(?:user|assistant|system|tool)\]\n).)*)\Z", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairing:
    """`pairs`: (control's, treatment's) rows under one id; `by`: how many were found by "id", "prompt" and "last message";
    `old_alone`, `new_alone`: rows without a partner; `n_repeated`: rows under an id that came before in their own file."""

    pairs: list[tuple[Exchange, Exchange]]
    by: dict[str, int]
    old_alone: list[Exchange]
    new_alone: list[Exchange]
    n_other_prompts: int = 0
    """pairs by id whose prompts differ"""


def pair_up(old: Sequence[Exchange], new: Sequence[Exchange], *, ids: bool = True) -> Pairing:
    """Pair the answers of two files. `ids`: both files have ids of their own. Ids whose prompts differ more often than not are
    numbers of rows, and are not believed. Repeated ids and prompts pair in order."""
    pairs: list[tuple[Exchange, Exchange]] = []
    by: dict[str, int] = {}
    left: Sequence[Exchange] = old
    right: Sequence[Exchange] = new
    n_other = 0
    if ids:
        found, rest_left, rest_right = _matched(left, right, lambda row: row.request_id)
        told = [(a, b) for a, b in found if a.prompt is not None and b.prompt is not None]
        n_other = sum(normal_prompt(a.prompt) != normal_prompt(b.prompt) for a, b in told)
        if found and (not told or 2 * n_other <= len(told)):
            pairs, left, right = found, rest_left, rest_right
            by["id"] = len(found)
        else:
            n_other = 0
    for name, key in (("prompt", _by_prompt), ("last message", _by_last_message)):
        found, left, right = _matched(left, right, key)
        if found:
            by[name] = len(found)
            pairs = [*pairs, *found]
    return Pairing(
        pairs=_under_one_id(pairs), by=by, old_alone=list(left), new_alone=list(right), n_other_prompts=n_other
    )


def normal_prompt(prompt: str | None) -> str | None:
    """The prompt without what makes no difference: blanks, case, forms of the same letters; None for an empty one."""
    if prompt is None:
        return None
    return " ".join(unicodedata.normalize("NFKC", prompt).split()).casefold() or None


def _by_prompt(row: Exchange) -> str | None:
    return normal_prompt(row.prompt)


def _by_last_message(row: Exchange) -> str | None:
    """The last message of the user alone: one file may hold the system text, the other not."""
    if row.prompt is None:
        return None
    found = _LAST_USER.search(row.prompt)
    return normal_prompt(found[1] if found else row.prompt)


def _matched(
    left: Sequence[Exchange], right: Sequence[Exchange], key: Callable[[Exchange], str | None]
) -> tuple[list[tuple[Exchange, Exchange]], list[Exchange], list[Exchange]]:
    """(pairs of equal keys in order, what is left of each side)."""
    waiting: dict[str, list[Exchange]] = defaultdict(list)
    without: list[Exchange] = []
    for row in reversed(right):
        name = key(row)
        if name is None:
            without.append(row)
        else:
            waiting[name].append(row)
    pairs: list[tuple[Exchange, Exchange]] = []
    alone: list[Exchange] = []
    for row in left:
        name = key(row)
        partners = waiting.get(name) if name is not None else None
        if partners:
            pairs.append((row, partners.pop()))
        else:
            alone.append(row)
    kept = {id(row) for rows in waiting.values() for row in rows} | {id(row) for row in without}
    return pairs, alone, [row for row in right if id(row) in kept]


def _under_one_id(pairs: Sequence[tuple[Exchange, Exchange]]) -> list[tuple[Exchange, Exchange]]:
    """Both rows of a pair under control's id, with what only one of them knows of the request."""
    seen: dict[str, int] = defaultdict(int)
    found = []
    for old, new in pairs:
        name = old.request_id or fingerprint(old.prompt or "", length=32)
        seen[name] += 1
        if seen[name] > 1:
            name = f"{name}-{seen[name]}"
        asked = old if old.prompt is not None else new
        shared = {
            "request_id": name,
            "unit_id": old.unit_id or new.unit_id,
            "conversation_id": old.conversation_id or new.conversation_id,
            "started_at": old.started_at,
            "prompt": asked.prompt,
            "turn": asked.turn,
            "step": asked.step,
        }
        control = replace(old, arm=Arm.CONTROL, **shared, request=old.request or new.request)  # type: ignore[arg-type]
        treatment = replace(new, arm=Arm.TREATMENT, **shared, request=new.request or old.request)  # type: ignore[arg-type]
        found.append((control, treatment))
    return found
