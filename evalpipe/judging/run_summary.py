"""What a run did: counts for the progress line, the summary and `--json`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from evalpipe.judging.costs import CostHistory
from evalpipe.judging.judgments import read_note
from evalpipe.models import ASKED_MODEL, FINAL, Judgment, JudgmentStatus


@dataclass(slots=True)
class RunSummary:
    """One judge's run.

    Attributes:
        address: where the calls go.
        n_planned: calls that were to be made.
        n_known: calls of this judge that were answered before.
        n_over_cap: pairs that were left out because their user has k others.
        limit: only the first so many pairs were to be judged; None: all. n_beyond_limit: with nothing to do within it, how many
            are left beyond it.
        asked: judgments that ended, by status.
        retried: calls that cost nothing and were made again, by kind.
        failed: judgments that are not final, by reason; `words`: what the first of each reason reported.
        stopped: why the run ended before its plan; None where it did not. `message`: the details.
        n_given_up: calls that are not made again, as none of their answers held a verdict; `given_up`: the requests of them.
        unjudgeable: pairs (or answers) left out since an answer holds no text to judge, by kind.
        other_models: calls of this run that another model than `model` answered, by its name.
        account: what this judge has cost in this experiment, over all runs; None until the run has ended.
    """

    judge: str
    fingerprint: str
    address: str = ""
    n_planned: int = 0
    n_known: int = 0
    n_over_cap: int = 0
    limit: int | None = None
    n_beyond_limit: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    retried: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    words: dict[str, str] = field(default_factory=dict)
    tripwires: Counter[str] = field(default_factory=Counter)
    n_calls: int = 0
    n_repairs: int = 0
    n_contradictions: int = 0
    n_cut: int = 0
    n_simulated: int = 0
    n_estimated_costs: int = 0
    spent_usd: float | None = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    stopped: str | None = None
    message: str | None = None
    account: CostHistory | None = None
    n_given_up: int = 0
    given_up: list[str] = field(default_factory=list)
    unjudgeable: dict[str, int] = field(default_factory=dict)
    model: str = ""
    other_models: Counter[str] = field(default_factory=Counter)

    def book(self, judgment: Judgment) -> None:
        """Count what a call cost, whatever became of it."""
        self.n_calls += judgment.latency_ms is not None
        self.input_tokens += judgment.input_tokens or 0
        self.output_tokens += judgment.output_tokens or 0
        self.n_simulated += judgment.simulated
        if ASKED_MODEL in (judgment.note or ""):
            self.other_models[judgment.judge_model or "?"] += 1
        if judgment.cost_usd is None and judgment.input_tokens is not None:
            self.spent_usd = None
        if self.spent_usd is not None:
            self.spent_usd += judgment.cost_usd or 0.0

    def end(self, judgment: Judgment) -> None:
        """Count how a planned call ended: `judgment` is its last attempt of this run."""
        self.asked[judgment.status.value] += 1
        note = read_note(judgment.note)
        self.n_contradictions += bool(note.get("contradiction"))
        self.n_cut += bool(note.get("cut"))
        self.tripwires.update({name for names in note.get("tripwires", {}).values() for name in names})
        if judgment.status not in FINAL:
            reason = str(note.get("error", judgment.status.value))
            self.failed[reason] += 1
            self.words.setdefault(reason, str(note.get("message", "")))

    @property
    def title(self) -> str:
        return f"judge {self.judge}"

    @property
    def n_ended(self) -> int:
        return sum(self.asked.values())

    @property
    def n_failed(self) -> int:
        return sum(self.failed.values())

    @property
    def n_succeeded(self) -> int:
        """Judgments with a verdict; ties of identical answers, for which no call is made, among them."""
        return sum(self.asked[status.value] for status in FINAL)

    @property
    def is_failure(self) -> bool:
        """Calls were made, and none of them gave a verdict."""
        return self.n_failed > 0 and not self.asked[JudgmentStatus.OK.value]

    def as_json(self) -> dict[str, Any]:
        return {
            "judge": self.judge,
            "fingerprint": self.fingerprint,
            "planned": self.n_planned,
            "known": self.n_known,
            "succeeded": self.n_succeeded,
            "left_out_by_pairs_per_unit": self.n_over_cap,
            "left_beyond_limit": self.n_beyond_limit,
            "given_up": self.n_given_up,
            "given_up_requests": list(self.given_up),
            "left_out_without_text": dict(sorted(self.unjudgeable.items())),
            "answered_by_other_models": dict(sorted(self.other_models.items())),
            "judgments": dict(sorted(self.asked.items())),
            "failures": dict(sorted(self.failed.items())),
            "failure_messages": dict(sorted(self.words.items())),
            "retries": dict(sorted(self.retried.items())),
            "calls": self.n_calls,
            "repairs": self.n_repairs,
            "contradictions": self.n_contradictions,
            "cut": self.n_cut,
            "tripwires": dict(sorted(self.tripwires.items())),
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "spent_usd": self.spent_usd,
            "estimated_costs": self.n_estimated_costs,
            "all_runs": None if self.account is None else asdict(self.account),
            "simulated": self.n_simulated > 0,
            "stopped": self.stopped,
            "message": self.message,
        }
