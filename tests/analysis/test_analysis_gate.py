"""The gate: exit codes, the verdict file the collector serves, and the plan, on a real store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from experiment_builders import both_arms, draw, metric, run, verdicts

from evalpipe.analysis.metrics import metrics
from evalpipe.analysis.planning import Question, plan_metric
from evalpipe.cli.app import main
from evalpipe.models import Recommendation
from evalpipe.workspace.decide import VERDICT, watch
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import open_workspace


def _workspace(folder: Path, *, n: int, wins: int | None) -> None:
    """A workspace with `n` judged pairs of which the treatment won `wins`, loaded as the user would; None: the judge names
    whichever answer stands first."""
    (folder / "evalpipe.toml").write_text(
        '[experiment]\nname = "e"\n[judge]\nname = "people"\n[decision.metrics.error_rate]\nmargin = 0.05\n'
        "[decision.metrics.timeout_rate]\nmargin = 0.05\n",
        encoding="utf-8",
    )
    seated = [{"judge": "people", "order": "ab", "verdict": "a"}, {"judge": "people", "order": "ba", "verdict": "b"}]
    lines = [
        {"pair_id": f"p{i}", "prompt": f"question {i}", "response_a": "one", "response_b": "two", "model_a": "x", "model_b": "y",
         "judgements": seated if wins is None
         else [{"judge": "people", "order": "single", "verdict": "b" if i < wins else "a"}]}
        for i in range(n)
    ]  # fmt: skip
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    load(open_workspace(root=folder), [folder / "pairs.jsonl"])


def _run(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(str(ended.value.code))


@pytest.mark.parametrize(("wins", "wanted"), [(260, "ship"), (60, "keep"), (155, "collect_more"), (None, "invalid")])
def test_exit_codes_and_the_verdict_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wins: int | None, wanted: str
) -> None:
    _workspace(tmp_path, n=300, wins=wins)
    code = _run(monkeypatch, tmp_path, "gate", "--json")
    document = json.loads(capsys.readouterr().out)
    assert (code, document["recommendation"]) == (Recommendation(wanted).exit_code, wanted)
    stored = json.loads((tmp_path / "data" / VERDICT).read_text(encoding="utf-8"))
    assert stored == document
    assert stored["experiment"] == "e"
    assert stored["reasons"]


def test_no_data_yet_is_an_error_but_a_watching_gate_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evalpipe.toml").write_text('[experiment]\nname = "e"\n', encoding="utf-8")
    for command in ("gate", "report", "judge"):
        assert _run(monkeypatch, tmp_path, command) == 2
        assert "no data of experiment 'e'" in capsys.readouterr().err
    document = next(watch(open_workspace(root=tmp_path), every_s=1.0))
    assert document["recommendation"] == "collect_more"
    assert json.loads((tmp_path / "data" / VERDICT).read_text(encoding="utf-8")) == document
    _workspace(tmp_path, n=300, wins=260)
    assert next(watch(open_workspace(root=tmp_path), every_s=1.0))["recommendation"] == "ship"


@pytest.mark.parametrize("segment", [None, b"", b"{}\n"])
def test_gate_and_load_agree_on_whether_a_log_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], segment: bytes | None
) -> None:
    """A collector that has served nobody keeps an empty segment: there is nothing to load."""
    (tmp_path / "evalpipe.toml").write_text('[experiment]\nname = "e"\n', encoding="utf-8")
    spool = tmp_path / "data/spool"
    spool.mkdir(parents=True)
    if segment is not None:
        (spool / "w.000001.jsonl").write_bytes(segment)
    assert _run(monkeypatch, tmp_path, "gate") == 2
    assert ("the collector's log waits" in capsys.readouterr().err) is bool(segment)
    if not segment:
        assert _run(monkeypatch, tmp_path, "load") == 1
        assert "holds no request yet; send some through `evalpipe collect`" in capsys.readouterr().err
        assert _run(monkeypatch, tmp_path, "gate") == 2
        assert "no request is collected yet; send some through `evalpipe collect`" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["gate", "report", "judge"])
def test_unknown_names_are_exit_code_2_with_those_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    _workspace(tmp_path, n=60, wins=30)
    (tmp_path / "data/exchanges/experiment=checkout-model").mkdir()
    assert _run(monkeypatch, tmp_path, command, "--experiment", "checkout-modle") == 2
    error = capsys.readouterr().err
    assert "no 'checkout-modle'" in error
    assert "did you mean 'checkout-model'?" in error
    assert "checkout-model, e" in error
    assert _run(monkeypatch, tmp_path, command, "--judge", "peeple") == 2
    error = capsys.readouterr().err
    assert "'peeple'" in error
    assert ("pairwise" if command == "judge" else "did you mean 'people'?") in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("what", [["--list"], ["--remove", "1"]])
def test_exclusions_of_an_unknown_experiment_are_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: list[str]
) -> None:
    _workspace(tmp_path, n=10, wins=5)
    assert _run(monkeypatch, tmp_path, "exclude", "-e", "nosuch", *what) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert "no 'nosuch'" in printed.err
    assert "known: e" in printed.err


def test_the_list_of_exclusions_names_what_becomes_of_the_guarantee(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _workspace(tmp_path, n=60, wins=30)
    exclude = ["exclude", "--why", "outage", "--since"]
    assert _run(monkeypatch, tmp_path, *exclude, "2020-01-01T00:00Z", "--until", "2020-01-02T00:00Z") == 0
    _run(monkeypatch, tmp_path, "gate")  # a look
    assert _run(monkeypatch, tmp_path, *exclude, "2020-02-01T00:00Z", "--until", "2020-02-02T00:00Z") == 0
    capsys.readouterr()
    assert _run(monkeypatch, tmp_path, "exclude", "--list") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("its data had not been seen, so the error guarantee holds)")
    assert "its data had been seen before: outside the error guarantee" in second


def test_a_judge_is_known_where_it_is_configured_or_has_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _workspace(tmp_path, n=60, wins=30)
    config = tmp_path / "evalpipe.toml"
    config.write_text(config.read_text().replace('name = "people"', 'name = "strict"'), encoding="utf-8")
    for judge in ("people", "strict"):
        assert _run(monkeypatch, tmp_path, "report", "--judge", judge) == 0
    assert _run(monkeypatch, tmp_path, "report", "--judge", "pairwise") == 2  # shipped, but it has judged nothing here
    assert "known: strict, people" in capsys.readouterr().err


def test_watching_recomputes_only_when_files_change(tmp_path: Path) -> None:
    _workspace(tmp_path, n=60, wins=30)
    workspace = open_workspace(root=tmp_path)
    slept: list[float] = []
    verdicts = watch(workspace, every_s=5.0, sleep=slept.append)
    first, second = next(verdicts), next(verdicts)
    assert slept == [5.0]
    assert {**first, "computed_at": ""} == {**second, "computed_at": ""}


def test_plan_names_pairs_and_dollars_and_refuses_nonsense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _workspace(tmp_path, n=60, wins=30)
    assert _run(monkeypatch, tmp_path, "plan", "--metric", "win_rate", "--effect", "0.05", "--json", "--save") == 0
    plan = json.loads(capsys.readouterr().out)
    (goal,) = plan["metrics"]
    # 30 of 60 wins: variance .25·60/59; (1.959964 + 0.841621)² · variance / .05²
    assert goal["n_fixed"] == 799
    assert goal["n_star"] == 399
    record = json.loads((tmp_path / "data" / "experiments" / "e.json").read_text(encoding="utf-8"))
    assert (record["n_star"]["win_rate"], record["planned"]) == (399.0, True)
    for wrong in (["--metric", "win_rat"], ["--effect", "none"], ["--metric", "win_rate", "--effect", "60%"]):
        assert _run(monkeypatch, tmp_path, "plan", *wrong) == 2


def test_a_plan_counts_the_pairs_of_users_who_come_again() -> None:
    """400 pairs by 100 users, of which three a user count: the noise is that of users, the plan is in pairs of such users."""
    x = draw(400, 0.55, seed=5)
    pilot = metric(run(both_arms(400, n_users=100), verdicts(x)), "win_rate")
    item = next(one for one in metrics() if one.name == "win_rate")
    question = Question(effect=0.05, margin=0.03, scale="absolute", alpha=0.05)
    plan = plan_metric(item, question, looks="anytime", pilot=pilot)
    assert plan is not None
    means = x.reshape(4, 100)[:3].mean(axis=0)  # every user has four pairs
    users = (1.959964 + 0.841621) ** 2 * means.var(ddof=1) / 0.05**2
    assert plan.n_fixed == pytest.approx(3 * users, abs=1)
    assert plan.n_star == pytest.approx(users / 2, abs=1)
