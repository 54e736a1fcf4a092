"""A set-up fault of the treatment as a guardrail: users get its refusals, whatever they say of the model.

A fault of control is none of a canary's concern: rolling back would send everybody to the broken arm.
"""

from __future__ import annotations

from collections.abc import MutableSet

from evalpipe.core.canary import GuardrailVerdict
from evalpipe.core.setup_fault import FaultDetector
from evalpipe.core.traffic import ANSWERED, FAILED, Arm
from evalpipe.rollout.observation import Observation

NAME = "setup"


class TreatmentSetup:
    """Breached by a set-up fault of the treatment in the present stage.

    Args:
        passes_through: whether the client's model reaches the treatment.
        answered: fingerprints of configurations that have answered in any stage, kept by the caller over all of them: in
            later stages five refusals are not the first answers any more.
    """

    def __init__(self, *, passes_through: bool, answered: MutableSet[str | None]) -> None:
        self._passes_through, self._answered = passes_through, answered
        self._detectors: dict[str | None, FaultDetector] = {}
        self._waiting: list[Observation] = []
        self._n = 0

    def add(self, seen: Observation) -> None:
        if seen.arm is Arm.TREATMENT and (seen.outcome in ANSWERED or seen.outcome in FAILED):
            self._waiting.append(seen)

    def verdict(self, *, percentage: float, alpha: float) -> GuardrailVerdict:
        """It is no test of a rate: `alpha` has no part in it."""
        self._take()
        faults = [fault for detector in self._detectors.values() for fault in detector.faults]
        if faults:
            newest = max(faults, key=lambda fault: fault.last_at)
            return GuardrailVerdict(
                guardrail=NAME, kind=NAME, status="breached", value=float(newest.count), n=self._n, note=newest.text
            )
        status = "holds" if self._n else "no_data"
        return GuardrailVerdict(guardrail=NAME, kind=NAME, status=status, n=self._n, note=f"{NAME}: no set-up fault")

    def _take(self) -> None:
        """Since the last look, in the order of time: several workers write beside each other."""
        waiting, self._waiting = sorted(self._waiting, key=lambda seen: seen.asked_at), []
        for seen in waiting:
            self._n += 1
            mark = seen.configuration
            detector = self._detectors.get(mark)
            if detector is None:
                detector = self._detectors[mark] = FaultDetector(
                    arm=Arm.TREATMENT,
                    fingerprint=mark,
                    passes_through=self._passes_through,
                    answered_before=mark in self._answered,
                )
            if seen.outcome in ANSWERED:
                detector.answered()
                self._answered.add(mark)
            else:
                detector.failed(seen.failure, at=seen.asked_at, unit=seen.unit, message=seen.words)
