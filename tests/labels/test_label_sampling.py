"""The draw: known probabilities, the same for a seed, balanced at every beginning."""

from __future__ import annotations

from collections import Counter

import pytest

from evalpipe.labels.sampling import Candidate, allocate, control_first, draw


def candidates(n_sure: int, n_unsure: int) -> list[Candidate]:
    sure = [Candidate(request_id=f"s{n}", preference=float(n % 2)) for n in range(n_sure)]
    return sure + [Candidate(request_id=f"u{n}", preference=(0.25, 0.5, 0.75)[n % 3]) for n in range(n_unsure)]


def test_the_same_seed_draws_the_same_pairs_whatever_their_order() -> None:
    pairs = candidates(300, 100)
    drawn = draw(pairs, n=100, overlap=0.2, seed="a")
    assert drawn == draw(pairs[::-1], n=100, overlap=0.2, seed="a")
    assert len(drawn) == len({one.request_id for one in drawn}) == 100
    assert {one.request_id for one in drawn} != {one.request_id for one in draw(pairs, n=100, overlap=0.2, seed="b")}


def test_every_pair_has_the_probability_it_was_drawn_with() -> None:
    """Over many seeds a pair comes as often as its probability; by hand: 100 unsure of 400 at twice the rate get
    100 · 2 · 100 / (2 · 100 + 300) = 40 of 100, so 0.4 each, and the sure ones 60 / 300 = 0.2."""
    pairs = candidates(300, 100)
    seen = Counter[str]()
    n_draws = 1500
    for seed in range(n_draws):
        drawn = draw(pairs, n=100, overlap=0.2, seed=str(seed))
        assert {(one.stratum, one.probability) for one in drawn} == {("sure", 0.2), ("unsure", 0.4)}
        seen.update(one.request_id for one in drawn)
    for name, probability in (("s", 0.2), ("u", 0.4)):
        shares = [seen[one.request_id] / n_draws for one in pairs if one.request_id.startswith(name)]
        assert sum(shares) / len(shares) == pytest.approx(probability, abs=1e-9)  # a stratum's size is fixed
        error = (probability * (1 - probability) / n_draws) ** 0.5
        assert max(abs(share - probability) for share in shares) < 4.5 * error  # 400 pairs: 4.5 standard errors


def test_each_beginning_holds_the_strata_in_their_proportions() -> None:
    drawn = draw(candidates(300, 100), n=100, overlap=0.0, seed="a")
    for size in range(1, 101):
        n_unsure = sum(one.stratum == "unsure" for one in drawn[:size])
        assert abs(n_unsure - 0.4 * size) <= 1


def test_a_larger_draw_contains_the_smaller_one() -> None:
    pairs = candidates(300, 100)
    small, large = (draw(pairs, n=n, overlap=0.2, seed="a") for n in (100, 200))
    assert {one.request_id for one in small} < {one.request_id for one in large}
    shared = {one.request_id: one.is_shared for one in large}
    assert all(one.is_shared == shared[one.request_id] for one in small)


def test_the_overlap_is_a_share_of_the_draw() -> None:
    drawn = draw(candidates(5000, 0), n=5000, overlap=0.2, seed="a")
    share = sum(one.is_shared for one in drawn) / 5000
    assert share == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / 5000) ** 0.5)
    assert not any(one.is_shared for one in draw(candidates(50, 0), n=50, overlap=0.0, seed="a"))
    assert all(one.is_shared for one in draw(candidates(50, 0), n=50, overlap=1.0, seed="a"))


@pytest.mark.parametrize(
    ("sure", "unsure", "n", "expected"),
    [
        (300, 100, 100, {"sure": 60, "unsure": 40}),
        (360, 40, 100, {"sure": 80, "unsure": 20}),  # 2 · 40 / (2 · 40 + 360) · 100 = 18.2: at least 20
        (25, 375, 100, {"sure": 20, "unsure": 80}),  # 100 · 750 / 775 = 96.8: the other one needs 20
        (300, 19, 100, None),  # too few for an estimate within the stratum
        (300, 100, 39, None),
        (300, 100, 400, {"sure": 300, "unsure": 100}),  # all of them
        (30, 100, 120, {"sure": 20, "unsure": 100}),
    ],
)
def test_how_a_draw_is_allocated(sure: int, unsure: int, n: int, expected: dict[str, int] | None) -> None:
    assert allocate({"sure": sure, "unsure": unsure}, n) == expected


def test_without_strata_every_pair_is_as_likely() -> None:
    drawn = draw(candidates(30, 5), n=7, overlap=0.2, seed="a")
    assert {(one.stratum, one.probability) for one in drawn} == {(None, 7 / 35)}
    assert {one.stratum for one in draw(candidates(300, 100), n=100, overlap=0.2, seed="a", stratified=False)} == {None}


def test_identical_answers_are_no_sign_of_doubt() -> None:
    assert Candidate(request_id="x", preference=0.5, is_identical=True).stratum == "sure"
    assert [Candidate(request_id="x", preference=p).stratum for p in (None, 0.5, 0.25, 0.0, 1.0)] == [
        "unsure", "unsure", "unsure", "sure", "sure"
    ]  # fmt: skip


def test_a_draw_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"overlap = 1\.5"):
        draw(candidates(5, 0), n=2, overlap=1.5, seed="a")
    with pytest.raises(ValueError, match="one id"):
        draw([Candidate(request_id="x")] * 2, n=2, overlap=0.5, seed="a")


def test_sides_are_a_coin_for_each_person_and_pair() -> None:
    sides = [control_first("a", f"r{n}", person) for n in range(4000) for person in ("ana", "bo")]
    assert sum(sides) / 8000 == pytest.approx(0.5, abs=4 * 0.5 / 8000**0.5)
    agree = sum(sides[at] == sides[at + 1] for at in range(0, 8000, 2)) / 4000
    assert agree == pytest.approx(0.5, abs=4 * 0.5 / 4000**0.5)
