"""Assignment: the published hash vectors, shares, monotone percentages, independence, forced arms, the canary's share."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from evalpipe.collector.assignment import CanaryShare, RequestHead, Share, SplitAssigner, choose
from evalpipe.collector.settings import HISTORY_POLL_S
from evalpipe.http1.headers import HttpError, read_lines
from evalpipe.identity import bucket, in_treatment
from evalpipe.models import Arm, CanaryStatus, copy_name
from evalpipe.rollout import canary
from evalpipe.rollout.canary import History

VECTORS = json.loads((Path(__file__).parent / "assignment_vectors.json").read_text("utf-8"))


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda vector: ascii(vector["unit_id"])[:24])
def test_published_vectors(vector: dict[str, object]) -> None:
    """Recomputed here from the contract's sentence with nothing but a hash library."""
    text = f"{vector['salt']}:{vector['unit_id']}".encode()
    assert int.from_bytes(hashlib.sha256(text).digest()[:8], "big") % 10_000 == vector["bucket"]
    assert bucket(str(vector["salt"]), str(vector["unit_id"])) == vector["bucket"]
    for percent, expected in vector["treatment_at_percent"].items():  # type: ignore[attr-defined]
        assert in_treatment(str(vector["salt"]), str(vector["unit_id"]), float(percent)) is expected


@pytest.mark.parametrize(
    ("unit", "bucket"), [("user-1", 64), ("user-2", 34), ("alice", 59), ("42", 50), ("ünïcode", 93)]
)
def test_the_common_recipe_keeps_users_in_the_arm_they_have(unit: str, bucket: int) -> None:
    """Buckets by md5sum and bc: MD5 of "claude-migration:UNIT" in hex, as an integer, modulo 100."""
    drawn = {
        share: choose("claude-migration", unit, Share(float(share)), recipe="md5-100").arm is Arm.TREATMENT
        for share in range(101)
    }
    assert drawn == {share: bucket < share for share in range(101)}


def test_the_share_is_exact_to_the_hundredth_of_a_percent() -> None:
    """0.07 % is seven buckets of 10,000, though 100 * 0.07 > 7 in floating point."""
    units = {bucket("s", str(i)): str(i) for i in range(200_000)}
    assert sum(in_treatment("s", units[b], 0.07) for b in range(20)) == 7
    assert not any(in_treatment("s", units[b], 0) for b in range(20))
    assert all(in_treatment("s", unit, 100) for unit in units.values())


def test_raising_the_percentage_moves_nobody_back_and_experiments_are_independent() -> None:
    n = 50_000
    first = np.array([bucket("one", f"user-{i}") for i in range(n)])
    second = np.array([bucket("two", f"user-{i}") for i in range(n)])
    before = np.zeros(n, bool)
    for percent in (1, 5, 10, 25, 50, 100):
        now = first < 100 * percent
        assert not (before & ~now).any()
        assert abs(now.mean() - percent / 100) <= 4 * np.sqrt(percent / 100 * (1 - percent / 100) / n)
        before = now
    table = np.histogram2d(first, second, bins=10)[0]
    assert stats.chi2_contingency(table).pvalue > 1e-4


@given(st.text(), st.floats(0, 100), st.floats(0, 100))
def test_any_text_is_a_unit_and_sticks(unit: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    if choose("salt", unit, Share(low)).arm is Arm.TREATMENT:
        assert choose("salt", unit, Share(high)).arm is Arm.TREATMENT
    assert choose("salt", unit, Share(low)) == choose("salt", unit, Share(low))


def test_forcing_needs_the_token_and_a_real_arm() -> None:
    share = Share(0.0, 7)
    forced = choose("s", "u", share, forced="Treatment ", may_force=True)
    assert (forced.arm, forced.forced, forced.percentage, forced.stage) == (Arm.TREATMENT, True, 0.0, 7)
    assert choose("s", "u", Share(100.0), forced="control", may_force=True).arm is Arm.CONTROL
    with pytest.raises(HttpError, match="token") as refused:
        choose("s", "u", share, forced="treatment")
    assert refused.value.status == 403
    with pytest.raises(HttpError, match="control or treatment") as unknown:
        choose("s", "u", share, forced="b", may_force=True)
    assert unknown.value.status == 400


def test_workers_see_a_change_at_their_next_look(tmp_path: Path) -> None:
    now = 100.0
    history = History(tmp_path, "x")
    share = CanaryShare(history.path, clock=lambda: now)
    assert share() == Share(0.0)
    plan = [canary.Stage(percentage=5)]
    nothing = canary.StageStatus(watched_s=0, n_treatment=0, verdicts=[])
    history.apply(
        lambda state: canary.evaluate(state, nothing, now=1, stages=plan, min_requests=1), now=1, who="controller"
    )
    assert share() == Share(0.0), "not looked at again yet"
    now += HISTORY_POLL_S
    assert share() == Share(5.0, 1)
    history.apply(lambda state: canary.rollback(state, now=2, why="bad"), now=2, who="alice")
    now += HISTORY_POLL_S
    assert share() == Share(0.0, 2)
    with history.path.open("ab") as file:  # a line that a power loss cut short is no change
        file.write(b'{"seq":3,"at":3.0,"who":"x","action":"start","why":"","state":{"status":"running","perce')
    now += HISTORY_POLL_S
    assert share() == Share(0.0, 2)
    assert history.state().status is CanaryStatus.ROLLED_BACK
    history.apply(lambda _: canary.reset(now=4, why="fixed"), now=4, who="bob")
    now += HISTORY_POLL_S
    assert share() == Share(0.0, 3)
    assert [event.action for event in history.events()] == ["start", "rollback", "reset"]


def _head(endpoint: str = "chat.completions", **headers: str) -> RequestHead:
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    lines = read_lines(f"POST / HTTP/1.1\r\n{head}\r\n".encode())[1]
    return RequestHead(request_id="r", endpoint=endpoint, target=b"/", lines=lines)


def _assigner(**changes: object) -> SplitAssigner:
    told: dict[str, object] = {
        "salt": "s",
        "unit_sources": ("header:x-user-id", "body:user", "body:metadata.user_id"),
        "share": lambda: Share(50.0, 3),
        "token": "secret",
    }
    return SplitAssigner(**{**told, **changes})  # type: ignore[arg-type]


def test_the_first_source_present_is_the_unit_and_the_conversation_is_the_fallback() -> None:
    body = json.dumps(
        {"user": "ü", "metadata": {"user_id": 7}, "messages": [{"role": "user", "content": "hi"}]}
    ).encode()
    split = _assigner()
    for head, expected in (
        (_head(x_user_id="u1", x_evalpipe_unit="u0"), ("u0", "header:x-evalpipe-unit")),
        (_head(x_user_id="u1"), ("u1", "header:x-user-id")),
        (_head(x_user_id=""), ("ü", "body:user")),
    ):
        found = split.assign(head, body)
        assert (found.unit_id, found.unit_source) == expected
        assert (found.arm == "treatment") == in_treatment("s", expected[0], 50)
        assert (found.percentage, found.stage, found.forced) == (50.0, 3, False)
    anonymous = b'{"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "hi"}]}'
    longer = anonymous.replace(b"}]", b'}, {"role": "user", "content": "more"}]')
    one, two = split.assign(_head(), anonymous), split.assign(_head(), longer)
    assert one.unit_source == two.unit_source == "conversation"
    assert one.unit_id == two.unit_id == one.conversation_id, "the same opening is the same unit"
    assert split.assign(_head(), b"no JSON").unit_source == "conversation"


def test_only_the_right_token_forces() -> None:
    forced = {"x_evalpipe_arm": "treatment", "x_user_id": "u"}
    assert _assigner().assign(_head(**forced, x_evalpipe_token="secret"), b"{}").forced
    for token, sent in (("secret", "wrong"), (None, "secret"), ("", "")):
        with pytest.raises(HttpError):
            _assigner(token=token).assign(_head(**forced, x_evalpipe_token=sent), b"{}")


def test_what_a_tester_forces_is_not_shadowed() -> None:
    split = _assigner(shadow_percent=100.0, share=lambda: Share(0.0))
    for arm in ("control", "treatment"):
        found = split.assign(_head(x_evalpipe_arm=arm, x_user_id="u", x_evalpipe_token="secret"), b"{}")
        assert (found.arm, found.forced, found.eligible) == (arm, True, False)
    assert split.assign(_head(x_user_id="u"), b"{}").eligible


def test_a_share_of_what_control_serves_is_shadowed_by_conversation() -> None:
    split = _assigner(shadow_percent=30.0, share=lambda: Share(10.0))
    due = served = 0
    for i in range(2000):
        body = json.dumps({"user": f"u{i}", "messages": [{"role": "user", "content": f"question {i}"}]}).encode()
        found = split.assign(_head(), body)
        assert not (found.eligible and found.arm == "treatment")
        served += found.arm == "control"
        due += found.eligible
    assert abs(due / served - 0.3) < 4 * (0.3 * 0.7 / served) ** 0.5


def test_where_the_conversation_is_the_unit_the_shadowed_share_is_drawn_apart_from_the_arm() -> None:
    # From one hash every conversation below 30 % would be the treatment's already, and none of control's would be shadowed.
    split = _assigner(shadow_percent=30.0, share=lambda: Share(40.0))
    bodies = [json.dumps({"messages": [{"role": "user", "content": f"question {i}"}]}).encode() for i in range(2000)]
    found = [split.assign(_head(), body) for body in bodies]
    assert {one.unit_source for one in found} == {"conversation"}
    served = sum(one.arm == "control" for one in found)
    due = sum(one.eligible for one in found)
    assert abs(due / served - 0.3) < 4 * (0.3 * 0.7 / served) ** 0.5


def test_workers_serve_nobody_where_the_history_is_gone_or_behind_its_copy(tmp_path: Path) -> None:
    now = 100.0
    history = History(tmp_path, "x")
    share = CanaryShare(history.path, clock=lambda: now)
    plan = [canary.Stage(percentage=5), canary.Stage(percentage=20)]
    nothing = canary.StageStatus(watched_s=0, n_treatment=0, verdicts=[])
    history.apply(lambda state: canary.evaluate(state, nothing, now=1, stages=plan, min_requests=1), now=1, who="c")
    first = history.path.read_bytes()
    history.apply(lambda state: canary.approve(state, now=2, stages=plan, why="", force=True), now=2, who="alice")
    assert share() == Share(20.0, 2)
    whole = history.path.read_bytes()
    nobody, everybody = Share(0.0), Share(20.0, 2)
    for left, expected in ((first, nobody), (whole, everybody), (b"", nobody), (whole, everybody), (None, nobody)):
        if left is None:
            history.path.unlink()
        else:
            history.path.write_bytes(left)
        now += HISTORY_POLL_S
        assert share() == expected
    copy = history.path.with_name(copy_name(history.path.name))
    last = copy.read_bytes()
    copy.unlink()
    history.path.write_bytes(first)
    now += HISTORY_POLL_S
    assert share() == Share(5.0, 1)
    copy.write_bytes(last)  # it was out of sight for a moment: the history has lost its end after all
    now += HISTORY_POLL_S
    assert share() == nobody
