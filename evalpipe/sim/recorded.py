"""Judgements that other people recorded, found again by what a judge prompt shows."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalpipe.errors import ConfigError
from evalpipe.providers.jsontext import MalformedJSONError, as_dict, as_list, as_text, parse
from evalpipe.providers.plain_text import content_text
from evalpipe.sim.prompts import JudgePrompt

_SHOWN_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class RecordedPair:
    """`verdicts`: (judge, order) → a | b | tie | None (unreadable); order: ab | ba | single | unknown."""

    prompt: str
    label: str | None
    verdicts: dict[tuple[str, str], str | None]


class RecordedJudgements:
    """The pairs of a `pairs` file, by their two responses."""

    def __init__(self, path: Path) -> None:
        self._pairs: defaultdict[tuple[str, str], list[RecordedPair]] = defaultdict(list)
        self.judges: set[str] = set()
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise ConfigError(f"cannot read the pairs {path}: {error.strerror}") from error
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    self._add(as_dict(parse(line)))
                except MalformedJSONError as error:
                    raise ConfigError(f"{path}:{number}: {error}") from error

    def _add(self, row: dict[str, Any]) -> None:
        verdicts: dict[tuple[str, str], str | None] = {}
        for judgement in map(as_dict, as_list(row.get("judgements"))):
            name = judge_name(judgement)
            self.judges.add(name)
            verdicts.setdefault((name, str(judgement.get("order"))), as_text(judgement.get("verdict")))
        prompt = row.get("prompt")
        words = (
            prompt
            if isinstance(prompt, str)
            else "".join(content_text(as_dict(m).get("content")) for m in as_list(prompt))
        )
        key = (_shown(content_text(row.get("response_a"))), _shown(content_text(row.get("response_b"))))
        self._pairs[key].append(RecordedPair(_shown(words), as_text(row.get("label")), verdicts))

    def find(self, prompt: JudgePrompt) -> tuple[RecordedPair, bool] | None:
        """The pair a prompt shows, and whether response_a has the first seat."""
        first, second = (_shown(response.text) for response in prompt.responses)
        for key, a_first in (((first, second), True), ((second, first), False)):
            candidates = self._pairs.get(key)
            if candidates:
                asked = "".join(prompt.request.split())
                return next((pair for pair in candidates if pair.prompt[:200] in asked), candidates[0]), a_first
        return None


def judge_name(judgement: dict[str, Any]) -> str:
    """A `method` beside `judge` is part of its name."""
    judge, method = as_text(judgement.get("judge")) or "unknown", as_text(judgement.get("method"))
    return f"{judge}/{method}" if method else judge


def _shown(text: str) -> str:
    """A text as far as it survives being shown to a judge: spaces, cuts in the middle and neutralised tags left out."""
    words = "".join(text.replace("\u2039", "<").split())
    return words if len(words) <= 2 * _SHOWN_CHARACTERS else words[:_SHOWN_CHARACTERS] + words[-_SHOWN_CHARACTERS:]
