"""How a simulated judge answers: by stated rules, by stated rates, or with what others recorded; the same for the same prompt."""

from __future__ import annotations

from dataclasses import dataclass

from evalpipe.sim.prompts import JudgePrompt, ShownResponse
from evalpipe.sim.recorded import RecordedJudgements
from evalpipe.sim.requests import BadRequestError
from evalpipe.sim.rules import FULL, check
from evalpipe.sim.settings import JudgeBehaviour
from evalpipe.sim.text import seeded

_SEATS = ("response_1", "response_2")
UNREADABLE = "Both responses have their merits. On balance I would lean towards the first one, but it is close."


@dataclass(frozen=True, slots=True)
class _Verdict:
    """`winner`: response_1 | response_2 | tie; None: nothing readable. `scores` per response, in [0, 1]."""

    winner: str | None
    scores: tuple[float, float]
    reasoning: str


class SimulatedJudge:
    """Answers judge prompts as `behaviour` says. `seed` moves every draw of the stated rates."""

    def __init__(self, behaviour: JudgeBehaviour, seed: int) -> None:
        self._behaviour = behaviour
        self._seed = seed
        self._recorded = RecordedJudgements(behaviour.pairs) if behaviour.pairs is not None else None

    @property
    def recorded_judges(self) -> frozenset[str]:
        """The judges whose recorded judgements can be asked for by the model's name."""
        if self._recorded is None or self._behaviour.behaviour != "replay":
            return frozenset()
        return frozenset(self._recorded.judges)

    def reply(self, prompt: JudgePrompt, model: str) -> str:
        """The reply text. Raises BadRequestError where a replay has nothing recorded for the prompt."""
        if len(prompt.responses) == 1:
            return self._alone(prompt, model)
        verdict = {"checks": self._by_rules, "stated": self._by_rates, "replay": self._by_record}[
            self._behaviour.behaviour
        ](prompt, model)
        if verdict.winner is None:
            return UNREADABLE
        return prompt.reply(list(verdict.scores), verdict.winner, verdict.reasoning)

    def _by_rules(self, prompt: JudgePrompt, model: str) -> _Verdict:
        checked = [check(prompt.request, response.text, response.state) for response in prompt.responses]
        first, second = (result.points for result in checked)
        winner = "tie" if first == second else _SEATS[first < second]
        broken = [
            f"response {seat}: {', '.join(result.broken) or 'none'}" for seat, result in enumerate(checked, start=1)
        ]
        return _Verdict(winner, (first / FULL, second / FULL), f"Stated rules broken by {'; by '.join(broken)}.")

    def _by_rates(self, prompt: JudgePrompt, model: str) -> _Verdict:
        stated = self._behaviour
        shown = [(response.text, response.state) for response in prompt.responses]
        rng = seeded(self._seed, model, prompt.request, shown, prompt.n_turns)
        if rng.random() < stated.unparseable_rate:
            return _Verdict(None, (0, 0), "")
        if rng.random() < stated.tie_rate:
            return _Verdict("tie", (0.7, 0.7), "Neither is better.")
        if rng.random() < stated.seat_bias:
            return _Verdict(_SEATS[0], (0.8, 0.6), "The first response reads better.")
        first, second = prompt.responses
        if rng.random() < stated.length_bias:
            return _decisive(len(first.text) >= len(second.text), "The longer response is more thorough.")
        better_first = self._first_is_better(prompt)
        if better_first is None:
            return _Verdict("tie", (0.7, 0.7), "Neither is better.")
        right = rng.random() < stated.accuracy
        return _decisive(better_first == right, "It answers more of what was asked.")

    def _first_is_better(self, prompt: JudgePrompt) -> bool | None:
        """By the recorded label where there is one, else by the latent quality of the two texts."""
        found = self._recorded.find(prompt) if self._recorded is not None else None
        if found is not None and found[0].label in {"a", "b", "tie"}:
            pair, a_first = found
            return None if pair.label == "tie" else (pair.label == "a") == a_first
        first, second = (self._quality(response) for response in prompt.responses)
        return None if first == second else first > second

    def _quality(self, response: ShownResponse) -> float:
        return -1.0 if response.state == "empty" else seeded(self._seed, "quality", response.text).random()

    def _by_record(self, prompt: JudgePrompt, model: str) -> _Verdict:
        assert self._recorded is not None  # SimSettings asks for the file
        found = self._recorded.find(prompt)
        judge = model if model in self._recorded.judges else self._behaviour.judge
        if judge is None and len(self._recorded.judges) == 1:
            judge = next(iter(self._recorded.judges))
        if judge is None:
            raise BadRequestError(f"model: {model!r} is none of the recorded judges")
        if found is None:
            raise BadRequestError("no recorded pair has these two responses")
        pair, a_first = found
        for order in ("ab" if a_first else "ba", "single", "unknown"):
            if (judge, order) in pair.verdicts:
                verdict = pair.verdicts[judge, order]
                break
        else:
            raise BadRequestError(f"{judge} recorded nothing for this pair in this order")
        if verdict is None:
            return _Verdict(None, (0, 0), "")
        if verdict == "tie":
            return _Verdict("tie", (0.7, 0.7), f"As recorded by {judge}.")
        return _decisive((verdict == "a") == a_first, f"As recorded by {judge}.")

    def _alone(self, prompt: JudgePrompt, model: str) -> str:
        response = prompt.responses[0]
        if self._behaviour.behaviour == "stated":
            rng = seeded(self._seed, model, prompt.request, response.text, response.state, prompt.n_turns)
            if rng.random() < self._behaviour.unparseable_rate:
                return UNREADABLE
            blur = (1 - self._behaviour.accuracy) * (rng.random() - 0.5)
            score = min(max(self._quality(response) + blur, 0.0), 1.0)
            return prompt.reply([score], None, "Scored by a latent quality of the text.")
        result = check(prompt.request, response.text, response.state)
        return prompt.reply([result.points / FULL], None, f"Stated rules broken: {', '.join(result.broken) or 'none'}.")


def _decisive(first_wins: bool, reasoning: str) -> _Verdict:
    return _Verdict(_SEATS[not first_wins], (0.8, 0.6) if first_wins else (0.6, 0.8), reasoning)
