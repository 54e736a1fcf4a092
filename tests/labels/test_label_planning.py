"""How many labels an interval needs: by hand, and as the report's own interval comes out."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from label_harness import make_workspace

from evalpipe.cli.app import main
from evalpipe.labels.planning import LabelPlan, Spread, sizes_of, spread_of
from evalpipe.workspace.analyze import analyze_workspace
from evalpipe.workspace.label import LabelOptions, import_labels, open_labelling
from evalpipe.workspace.label_estimate import estimate_labels
from evalpipe.workspace.paths import Workspace


def plan(sizes: dict[int, int], *, variance: float = 0.25, within: float = 1.0) -> LabelPlan:
    return LabelPlan(sizes=sizes, spread=Spread(variance=variance, within=within), critical=lambda n: 1.959964)


def test_one_pair_a_user_by_hand() -> None:
    """1.959964² · 0.25 / 0.05² = 384.15, of however few pairs: the users are a sample of future ones.

    With ρ = 0.7 of 1,000 pairs: V ρ² / N = 0.0001225 is the judge's part, 0.25 · 0.51 / (0.05² / 1.959964² − 0.0001225) = 241.3.
    """
    assert plan({1: 1_000_000}).labels_for(0.05) == 385
    assert plan({1: 1000}).labels_for(0.05) == 385
    assert plan({1: 1000}).labels_for(0.05, correlation=0.7) == 242
    assert plan({1: 200}).labels_for(0.05) is None
    assert plan({1: 200}).half_width(200) == pytest.approx(1.959964 * (0.25 / 200) ** 0.5)
    assert plan({1: 200}).users_for(0.05) == 385


def test_pairs_of_one_user_count_as_they_are_alike() -> None:
    """100 users with 4 pairs each. Alike: 400 labels are worth 100; not alike: 400. At 0.2: V_u = 0.25 · (1 + 3 · 0.2) / 4."""
    for within, variance in ((1.0, 0.25), (0.0, 0.0625), (0.2, 0.1)):
        found = plan({4: 100}, within=within)
        assert found.half_width(400) == pytest.approx(1.959964 * (variance / 100) ** 0.5)
        # Half of the labels: beside it a pair's own variance, 0.25 / 4 for each user, once more.
        assert found.half_width(200) == pytest.approx(1.959964 * ((variance + 0.0625) / 100) ** 0.5)
    assert plan({4: 100}).labelled_users(400) == 100
    assert plan({4: 100}).labelled_users(200) == pytest.approx(100 * (1 - 0.5**4))
    assert sizes_of(["a", "b", "a", "c"]) == {2: 1, 1: 2}


def test_the_spread_of_users_by_hand() -> None:
    """Means 1, 0 and ½ about ½: the variance of the users' means is (¼ + ¼ + 0) / 3 = 1/6, and each pair is ½ off: V = ¼."""
    found = spread_of([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    assert found is not None
    assert found.variance == pytest.approx(0.25)
    assert found.variance * (1 + found.within) / 2 == pytest.approx(1 / 6)
    assert spread_of([[1.0], [0.0]]) == Spread(variance=0.25, within=1.0)
    assert spread_of([[0.5], [0.5, 0.5]]) is None
    assert spread_of([[1.0]]) is None


def labelled(root: Path, *, n_labels: int, looks: str, n: int = 160, users: int = 79) -> Workspace:
    """Pairs of returning users, labelled at random; the judge agrees with people in four of five pairs."""
    rng = random.Random(5)
    people = [rng.choice("ab") for _ in range(n)]
    judged = [one if rng.random() < 0.8 else {"a": "b", "b": "a"}[one] for one in people]
    found = make_workspace(
        root,
        n,
        verdicts=[(one, one) for one in judged],
        users=users,
        settings=f'[decision]\nlooks = "{looks}"\n',
    )
    lines = [f"r{at},{people[at]},Ana" for at in rng.sample(range(n), n_labels)]
    with open_labelling(found, LabelOptions(n_pairs=n)) as labelling:
        import_labels(labelling, "\n".join(["pair_id,label,labeler", *lines]), None)
    return found


@pytest.mark.parametrize("looks", ["anytime", "fixed"])
def test_the_estimate_is_the_reports_interval(tmp_path: Path, looks: str) -> None:
    """With every pair labelled, and with some of them: within a fifth of the half-width."""
    shown = analyze_workspace(labelled(tmp_path / "all", n_labels=160, looks=looks)).corrected
    assert shown is not None
    assert shown.ci_low is not None
    assert shown.ci_high is not None
    reported = (shown.ci_high - shown.ci_low) / 2
    found = estimate_labels(labelled(tmp_path / "none", n_labels=0, looks=looks), 5, LabelOptions())
    assert (found.n_pairs, found.n_users, found.variance_from) == (160, 79, "at most")
    assert found.half_width_of_all == pytest.approx(reported, rel=0.2)
    found = estimate_labels(labelled(tmp_path / "all", n_labels=160, looks=looks), 5, LabelOptions())
    assert (found.looks, found.variance_from, found.within_from) == (looks, "labels", "labels")
    assert found.half_width_of_all == pytest.approx(reported, rel=0.2)
    assert found.alone is None
    assert found.users_needed is not None
    assert found.users_needed > 79
    some = labelled(tmp_path / "some", n_labels=110, looks=looks)
    shown = analyze_workspace(some).corrected
    assert shown is not None
    assert shown.ci_low is not None
    assert shown.ci_high is not None
    reported = (shown.ci_high - shown.ci_low) / 2
    (with_judge,) = estimate_labels(some, 100 * reported, LabelOptions()).with_judge.values()
    assert with_judge is not None
    assert 110 / 1.2**2 < with_judge < 110 * 1.2**2  # labels are in proportion to 1 / half-width²


def test_what_a_log_cannot_reach_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelled(tmp_path, n_labels=0, looks="fixed", n=200, users=200)
    with pytest.raises(SystemExit) as ended:
        main(["label", "--estimate", "5", "--config", str(tmp_path / "evalpipe.toml")])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    # t(198) 1.972 · √(0.25 / 200) = 0.0697; t(384) 1.966² · 0.25 / 0.05² = 386.6.
    assert "all 200 pairs of this log give about ± 7 points; ± 5 needs about 387 users" in out
    assert "people alone" not in out
    with pytest.raises(SystemExit):
        main(["label", "--estimate", "8", "--config", str(tmp_path / "evalpipe.toml")])
    out = capsys.readouterr().out
    # t(149) 1.976² · 0.25 / 0.08² = 152.5.
    assert "153 labels" in next(line for line in out.splitlines() if "people alone" in line)
    assert "(an assumption)" in out
