"""Means corrected by labels: golden values of ppi-python, what must hold for any data, and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import stdtrit

from evalpipe.stats import ppi
from evalpipe.stats.ppi import Items, UserSums


def _data(seed: int, n: int = 40, m: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, the judge's values of the same (right in four of five), and of others."""
    rng = np.random.default_rng(seed)
    truth = (rng.random(n + m) < 0.55).astype(float)
    judged = np.where(rng.random(n + m) < 0.8, truth, 1 - truth)
    return truth[:n], judged[:n], judged[n:]


def test_ppi_mean_golden_values() -> None:
    # ppi-python 0.2.3, ppi_mean_ci(y, f, F, alpha=.05), its variances by n and the normal quantile: tuned .58088836 (.44454904 to
    # .71722767), lam=1 .56 (.40617092 to .71382908).
    k, rest = np.arange(40), np.arange(160)
    y = (k * 7 % 10 < 6).astype(float)
    f, others = np.where(k % 4 == 0, 1 - y, y) * 0.8 + 0.1, np.where(rest * 3 % 10 < 5, 0.9, 0.1)
    for lam, point, low, high in ((None, 0.58088836, 0.44454904, 0.71722767), (1.0, 0.56, 0.40617092, 0.71382908)):
        found = ppi.ppi_mean(y, f, others, lam=lam)
        half = 1.959963984540054 * math.sqrt(found.v_labels * 39 / 40 + found.v_judge * 159 / 160)
        assert found.estimate.point == pytest.approx(point, abs=5e-9)
        assert found.estimate.point - half == pytest.approx(low, abs=5e-9)
        assert found.estimate.point + half == pytest.approx(high, abs=5e-9)


def test_ppi_without_the_judge_is_the_labels_plain_mean() -> None:
    y, f, rest = _data(1)
    se = y.std(ddof=1) / math.sqrt(len(y))
    reach = -float(stdtrit(len(y) - 1, 0.025)) * se
    worthless = np.full(len(rest), 0.7)
    for found in (
        ppi.ppi_mean(y, f, rest, lam=0.0),
        ppi.ppi_mean(y, f, []),  # nothing but labels
        ppi.ppi_mean(y, np.full(len(y), 0.7), worthless),  # a judge whose values never vary
    ):
        assert found.lam == 0 and found.gain == 1
        assert found.estimate.point == pytest.approx(y.mean())
        assert found.estimate.standard_error == pytest.approx(se)
        assert (found.estimate.ci_low, found.estimate.ci_high) == (
            pytest.approx(y.mean() - reach),
            pytest.approx(y.mean() + reach),
        )


def test_ppi_a_judge_worse_than_useless_is_not_used() -> None:
    y, f, rest = _data(2)
    found = ppi.ppi_mean(y, 1 - f, 1 - rest)
    assert found.lam == 0
    assert found.estimate.point == pytest.approx(y.mean())


@pytest.mark.parametrize("seed", range(5))
def test_ppi_shifted_scaled_and_mirrored(seed: int) -> None:
    y, f, rest = _data(seed)
    plain, moved = ppi.ppi_mean(y, f, rest), ppi.ppi_mean(3 + 2 * y, 3 + 2 * f, 3 + 2 * rest)
    assert moved.lam == pytest.approx(plain.lam)
    assert moved.estimate.point == pytest.approx(3 + 2 * (plain.estimate.point or 0))
    assert moved.estimate.standard_error == pytest.approx(2 * (plain.estimate.standard_error or 0))
    mirrored = ppi.ppi_mean(1 - y, 1 - f, 1 - rest)
    assert mirrored.estimate.point == pytest.approx(1 - (plain.estimate.point or 0))
    assert mirrored.estimate.ci_low == pytest.approx(1 - (plain.estimate.ci_high or 0))


def test_ppi_the_gain_is_that_of_the_correlation() -> None:
    # 1/(1 − ρ² N/(N + n)), exact for the true ρ; of these data within a few percent.
    rng = np.random.default_rng(3)
    f = rng.normal(size=20_400)
    y = 0.8 * f + 0.6 * rng.normal(size=20_400)
    found = ppi.ppi_mean(y[:400], f[:400], f[400:])
    assert found.gain == pytest.approx(1 / (1 - 0.64 * 20_000 / 20_400), rel=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_ppi_a_users_pairs_count_once(seed: int) -> None:
    """Every pair three times is no more data: the same estimate and error. As if independent the error would be 1/√3 of it."""
    y, f, rest = _data(seed)
    n, m = len(y), len(rest)
    once = ppi.ppi_mean(y, f, rest)
    zeros_n, zeros_m = np.zeros(n), np.zeros(m)
    thrice = ppi.ppi_users(
        UserSums(
            y=np.concatenate([3 * y, zeros_m]),
            f=np.concatenate([3 * f, zeros_m]),
            n=np.concatenate([zeros_n + 3, zeros_m]),
            rest=np.concatenate([zeros_n, 3 * rest]),
            n_rest=np.concatenate([zeros_n, zeros_m + 3]),
            n_labels=3 * n,
        )
    )
    assert thrice.lam == pytest.approx(once.lam)
    assert thrice.estimate.point == pytest.approx(once.estimate.point)
    assert thrice.estimate.standard_error == pytest.approx(once.estimate.standard_error)
    assert (thrice.estimate.n, thrice.estimate.n_clusters) == (3 * n, n)


def test_ppi_users_with_labelled_and_other_pairs_are_one_cluster() -> None:
    """Users whose other pair always is as the labelled one: the two parts of the error add up before squaring."""
    y, f, _ = _data(4, n=60)
    ones = np.ones(60)
    found = ppi.ppi_users(UserSums(y=y, f=f, n=ones, rest=f, n_rest=ones), lam=0.5)
    # θ = ½F̄ + mean(Y − ½f) = mean(Y) with F = f: the labels' own error.
    assert found.estimate.point == pytest.approx(y.mean())
    assert found.estimate.standard_error == pytest.approx(y.std(ddof=1) / math.sqrt(60))


def test_active_mean_at_equal_probabilities_is_ppi() -> None:
    y, f, rest = _data(5)
    n, m = len(y), len(rest)
    items = Items(
        f=np.concatenate([f, rest]),
        y=np.concatenate([y, np.full(m, math.nan)]),
        probability=np.full(n + m, n / (n + m)),
    )
    # λ of all items' mean is λ·(N + n)/N of the others' mean.
    assert ppi.active_mean(items, lam=1.0).estimate.point == pytest.approx(
        ppi.ppi_mean(y, f, rest, lam=m / (n + m)).estimate.point
    )
    tuned, two_parts = ppi.active_mean(items), ppi.ppi_mean(y, f, rest)
    assert tuned.estimate.standard_error == pytest.approx(two_parts.estimate.standard_error, rel=0.05)


def test_active_mean_of_a_part_of_the_drawn_items() -> None:
    """Half as probable everywhere, as when half of the drawn items were labelled so far: the same result."""
    rng = np.random.default_rng(6)
    y, f, rest = _data(6)
    probability = np.concatenate([rng.uniform(0.2, 0.9, len(y)), np.full(len(rest), 0.5)])
    items = Items(
        f=np.concatenate([f, rest]), y=np.concatenate([y, np.full(len(rest), math.nan)]), probability=probability
    )
    half = Items(f=items.f, y=items.y, probability=probability / 2)
    whole, part = ppi.active_mean(items), ppi.active_mean(half)
    assert part.estimate == whole.estimate or (
        part.estimate.point == pytest.approx(whole.estimate.point)
        and part.estimate.standard_error == pytest.approx(whole.estimate.standard_error)
    )


def test_active_mean_undoes_the_unequal_draw() -> None:
    """Losses are drawn five times as often as wins; over many draws the mean of the estimates is the truth of .6."""
    rng = np.random.default_rng(7)
    n = 1_000
    points = []
    for _ in range(200):
        y = (rng.random(n) < 0.6).astype(float)
        f = np.where(rng.random(n) < 0.8, y, 1 - y)
        probability = np.where(f > 0.5, 0.05, 0.25)
        drawn = rng.random(n) < probability
        found = ppi.active_mean(Items(f=f, y=np.where(drawn, y, math.nan), probability=probability))
        points.append(found.estimate.point)
    assert np.mean(points) == pytest.approx(0.6, abs=4 * np.std(points) / math.sqrt(200))
    assert abs(np.mean(points) - 0.6) < 0.01


def test_delta_stream_uses_the_past_only() -> None:
    y, f, _ = _data(8, n=300, m=0)
    labels = np.where(np.arange(300) % 3 == 0, y, math.nan)
    changed = labels.copy()
    changed[270:] = np.where(np.isnan(labels[270:]), math.nan, 1 - labels[270:])
    before, after = (
        ppi.delta_stream(Items(f=f, y=one, probability=np.full(300, 1 / 3)), refresh=50) for one in (labels, changed)
    )
    assert (before[:270] == after[:270]).all()
    assert (before[270:] != after[270:]).any()
    # Before any label there is neither λ nor a mean: g is the middle of the judge's values.
    assert set(before[:50][np.isnan(labels[:50])]) == {0.5}


def test_anytime_mean_waits_for_fifty_users_with_labels() -> None:
    y, f, _ = _data(9, n=400, m=0)
    for n, status in ((49, "burn_in"), (50, "ok")):
        items = Items(f=f, y=np.where(np.arange(400) < n, y, math.nan), probability=np.full(400, n / 400))
        found = ppi.anytime_mean(items)
        assert found.estimate.status == status
        assert found.estimate.n == n
    once = ppi.active_mean(items)
    assert found.estimate.ci_low is not None and once.estimate.ci_low is not None
    assert (found.estimate.ci_high or 0) - found.estimate.ci_low > (once.estimate.ci_high or 0) - once.estimate.ci_low


def test_ppi_refuses() -> None:
    y, f, rest = _data(10)
    assert ppi.ppi_mean([], [], rest).estimate.status == "no_data"
    assert ppi.ppi_mean(y[:1], f[:1], rest).estimate.status == "one_cluster"
    assert ppi.ppi_mean(y[:4], f[:4], rest).estimate.status == "too_few_clusters"
    few = ppi.ppi_mean(y[:9], f[:9], rest).estimate
    assert (few.status, few.note) == ("too_few_labels", "9 labels, at least 10 needed")
    rare = ppi.ppi_mean(np.arange(60) % 15 == 0, f[np.arange(60) % 40], rest).estimate  # 4 of 60
    assert (rare.status, rare.note) == (
        "too_few_labels",
        "4 of 60 labels differ from the commonest one, at least 5 needed",
    )
    assert ppi.ppi_mean(np.ones(60), f[np.arange(60) % 40], np.full(9, f[0]), lam=0).estimate.status == "zero_variance"
    small = UserSums(y=y, f=f, n=np.ones(40), rest=np.zeros(40), n_rest=np.zeros(40))
    assert ppi.stratified_mean([small, small], [1, 1]).estimate.status == "ok"
    few_strata = UserSums(y=y[:19], f=f[:19], n=np.ones(19), rest=np.zeros(19), n_rest=np.zeros(19))
    assert ppi.stratified_mean([small, few_strata], [1, 1]).estimate.status == "too_few_labels"
    for wrong in (
        lambda: ppi.ppi_mean(y, f[1:], rest),
        lambda: ppi.ppi_mean([math.nan, 1], [1, 1], rest),
        lambda: ppi.active_mean(Items(f=f, y=y, probability=np.zeros(40))),
        lambda: ppi.active_mean(Items(f=f, y=y, probability=np.full(40, 1.5))),
        lambda: ppi.active_mean(Items(f=f, y=y, probability=np.ones(39))),
        lambda: ppi.stratified_mean([small], [1, 2]),
        lambda: ppi.neyman_allocation({"a": 1}, {"a": -1}, 5),
    ):
        with pytest.raises(ValueError):
            wrong()


def test_neyman_allocation_spends_the_budget() -> None:
    # 10·.5 : 30·.1 : 60·0 = 5 : 3 : 0; of 9 labels 5.625 and 3.375: the larger remainder gets the last one.
    assert ppi.neyman_allocation({"a": 10, "b": 30, "c": 60}, {"a": 0.5, "b": 0.1, "c": 0.0}, 9) == {
        "a": 6,
        "b": 3,
        "c": 0,
    }
    assert ppi.neyman_allocation({"a": 10, "b": 30}, {"a": 0, "b": 0}, 4) == {"a": 1, "b": 3}
    assert ppi.neyman_allocation({}, {}, 4) == {}


def test_draw_probabilities_add_up_to_the_budget() -> None:
    # u = 1, 1, 2: 3·(½·¼ + ½·⅓) = .875 for the first two, 3·(½·½ + ½·⅓) = 1.25, at most 1, for the last.
    assert ppi.draw_probabilities([1, 1, 2], 3) == pytest.approx([0.875, 0.875, 1.0])
    assert ppi.draw_probabilities(np.arange(1, 101), 10).sum() == pytest.approx(10)
    assert ppi.draw_probabilities([0, 0], 1) == pytest.approx([0.5, 0.5])
    assert len(ppi.draw_probabilities([], 3)) == 0
    with pytest.raises(ValueError, match="must not be negative"):
        ppi.draw_probabilities([-1, 1], 3)
