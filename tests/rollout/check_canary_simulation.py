"""200 simulated canaries as good as control, 200 with four times the errors. Run by `make check-rollout`.

Control fails 1 % of 50 requests a second for an hour at 10 %; a look after every 10 requests, by the guardrails and the state
machine the controller runs. A look between two failures cannot raise any evidence (tests/rollout/test_guardrails.py proves
it on whole runs), so only looks after a failure are computed.
"""

from __future__ import annotations

import statistics
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from evalpipe.identity import in_treatment
from evalpipe.models import Arm, CanaryState, CanaryStatus, Outcome
from evalpipe.rollout.canary import Stage, StageStatus, evaluate
from evalpipe.rollout.guardrails import RateDifference, build_guardrails, evaluate_guardrails
from evalpipe.rollout.observations import Observation

RATE, HOUR_S, PERCENT, LOOK_EVERY, USERS = 50, 3600, 10, 10, 20_000
LIMITS = {"error_rate": 0.02, "p99_latency_ms": 5000.0}


def rolled_back_after_s(
    seed: int, treatment_error_rate: float, every_look: bool = False, seconds: int = HOUR_S
) -> float | None:
    """Seconds until the rollback, or None where the hour passed without one. Users return, unevenly."""
    rng = np.random.default_rng(seed)
    n = RATE * seconds
    users = (rng.beta(0.5, 1.5, n) * USERS).astype(int)
    names = [f"user-{i}" for i in range(USERS)]
    treated = np.array([in_treatment(f"simulated-{seed}", name, PERCENT) for name in names])[users]
    failed = rng.random(n) < np.where(treated, treatment_error_rate, 0.01)
    latency = rng.lognormal(6.5, 0.6, n)
    guardrails = build_guardrails(LIMITS)
    (difference,) = (guardrail for guardrail in guardrails if isinstance(guardrail, RateDifference))
    state = CanaryState(status=CanaryStatus.RUNNING, percentage=PERCENT, stage=0, entry=1)
    stages = [Stage(percentage=PERCENT, duration_s=2 * HOUR_S)]
    slow = latency > LIMITS["p99_latency_ms"]
    matters = treated | failed
    n_treatment, fresh = 0, False
    i = -1
    while i + 1 < n:
        look = min(i + LOOK_EVERY - (i + 1) % LOOK_EVERY, n - 1)
        chosen = np.arange(i + 1, look + 1) if every_look else i + 1 + np.flatnonzero(matters[i + 1 : look + 1])
        for number in chosen:
            arm = Arm.TREATMENT if treated[number] else Arm.CONTROL
            outcome = Outcome.HTTP_ERROR if failed[number] else Outcome.OK
            seen = Observation(arm=arm, unit=names[users[number]], outcome=outcome, latency_ms=float(latency[number]))
            n_treatment += arm is Arm.TREATMENT
            fresh = fresh or bool(failed[number] or (treated[number] and slow[number]))
            for guardrail in guardrails:
                guardrail.add(seen)
        if not every_look:  # control's good answers count in one number only: its requests
            difference.sums[Arm.CONTROL].n = look + 1 - n_treatment
        i = look
        if fresh or every_look:
            fresh = False
            verdicts = evaluate_guardrails(guardrails, percentage=PERCENT, alpha=0.05)
            looked = StageStatus(watched_s=i / RATE, n_treatment=n_treatment, verdicts=verdicts)
            change = evaluate(state, looked, now=i / RATE, stages=stages, min_requests=50)
            if change is not None and change.action == "rollback":
                return i / RATE
    return None


def same(seed: int) -> float | None:
    return rolled_back_after_s(seed, 0.01)


def worse(seed: int) -> float | None:
    return rolled_back_after_s(seed, 0.04)


def main(runs: int = 200) -> int:
    with ProcessPoolExecutor(2) as pool:
        false_alarms = [t for t in pool.map(same, range(runs), chunksize=5) if t is not None]
        caught = [t for t in pool.map(worse, range(1000, 1000 + runs), chunksize=5) if t is not None]
    median_min = statistics.median(caught) / 60 if caught else float("inf")
    print(f"as good as control: {len(false_alarms)} of {runs} rolled back (at most 5 % allowed)")
    print(
        f"4 % errors: {len(caught)} of {runs} caught (at least 95 % wanted), median after {median_min:.1f} min (at most 20)"
    )
    return 0 if len(false_alarms) <= 0.05 * runs and len(caught) >= 0.95 * runs and median_min <= 20 else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
