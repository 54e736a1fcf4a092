"""What a run did: counts for the progress line, the summary and `--json`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from evalpipe.calls.runner import RunCounts
from evalpipe.judging.costs import CostHistory
from evalpipe.judging.judgments import read_note
from evalpipe.judging.plan import NO_FACTS
from evalpipe.models import ASKED_MODEL, FINAL, Judgment, JudgmentStatus

WITHOUT_FACTS = frozenset(NO_FACTS.values())


@dataclass(slots=True)
class RunSummary(RunCounts[Judgment]):
    """One judge's run. `failed` counts judgments that are not final.

    Attributes:
        address: where the calls go.
        n_over_cap: pairs that were left out because their user has k others.
        limit: only the first so many pairs were to be judged; None: all. n_beyond_limit: with nothing to do within it, how many
            are left beyond it.
        asked: judgments that ended, by status.
        n_given_up: calls that are not made again, as none of their answers held a verdict; `given_up`: the requests of them.
        unjudgeable: pairs (or answers) left out since an answer holds no text to judge, or there is nothing to check it against,
            by kind.
        other_models: calls of this run that another model than `model` answered, by its name.
        account: what this judge has cost in this experiment, over all runs; None until the run has ended.
    """

    judge: str
    fingerprint: str
    address: str = ""
    model: str = ""
    n_over_cap: int = 0
    limit: int | None = None
    n_beyond_limit: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    tripwires: Counter[str] = field(default_factory=Counter)
    n_repairs: int = 0
    n_contradictions: int = 0
    n_cut: int = 0
    n_given_up: int = 0
    given_up: list[str] = field(default_factory=list)
    unjudgeable: dict[str, int] = field(default_factory=dict)
    other_models: Counter[str] = field(default_factory=Counter)
    account: CostHistory | None = None

    def book(self, row: Judgment) -> None:
        """Count what a call cost, whatever its outcome."""
        self.n_calls += row.latency_ms is not None
        if ASKED_MODEL in (row.note or ""):
            self.other_models[row.judge_model or "?"] += 1
        self.add_usage(row)

    def end(self, judgment: Judgment) -> None:
        """Count how a planned call ended: `judgment` is its last attempt of this run."""
        self.asked[judgment.status.value] += 1
        note = read_note(judgment.note)
        self.n_contradictions += bool(note.get("contradiction"))
        self.n_cut += bool(note.get("cut"))
        self.tripwires.update({name for names in note.get("tripwires", {}).values() for name in names})
        if judgment.status not in FINAL:
            reason = str(note.get("error", judgment.status.value))
            self.add_failure(reason, str(note.get("message", "")))

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
            "left_out_without_text": {
                kind: n for kind, n in sorted(self.unjudgeable.items()) if kind not in WITHOUT_FACTS
            },
            "left_out_without_facts": {
                kind: n for kind, n in sorted(self.unjudgeable.items()) if kind in WITHOUT_FACTS
            },
            "answered_by_other_models": dict(sorted(self.other_models.items())),
            "judgments": dict(sorted(self.asked.items())),
            **self.failures_json(),
            "calls": self.n_calls,
            "repairs": self.n_repairs,
            "contradictions": self.n_contradictions,
            "cut": self.n_cut,
            "tripwires": dict(sorted(self.tripwires.items())),
            **self.cost_json(),
            "all_runs": None if self.account is None else asdict(self.account),
            **self.end_json(),
        }
