"""The gate: exit codes, the verdict file the collector serves, and the plan, on a real store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from experiment_builders import both_arms, draw, metric, run, verdicts

from evalpipe.analysis.metrics import metrics
from evalpipe.analysis.plan import plan_metric
from evalpipe.cli import main
from evalpipe.core.experiment import Recommendation
from evalpipe.pipeline.gate import VERDICT, watch
from evalpipe.pipeline.load import load
from evalpipe.pipeline.workspace import open_workspace


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


def test_no_data_yet_is_collect_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evalpipe.toml").write_text('[experiment]\nname = "e"\n', encoding="utf-8")
    assert _run(monkeypatch, tmp_path, "gate") == 11


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
    """400 pairs by 100 users: the noise is that of users, the plan is in pairs of such users."""
    x = draw(400, 0.55, seed=5)
    pilot = metric(run(both_arms(400, n_users=100), verdicts(x)), "win_rate")
    item = next(one for one in metrics() if one.name == "win_rate")
    plan = plan_metric(
        item, effect=0.05, margin=0.03, scale="absolute", alpha=0.05, power=0.8, looks="anytime", pilot=pilot
    )
    assert plan is not None
    means = x.reshape(4, 100).mean(axis=0)  # every user has four pairs
    users = (1.959964 + 0.841621) ** 2 * means.var(ddof=1) / 0.05**2
    assert plan.n_fixed == pytest.approx(4 * users, abs=1)
    assert plan.n_star == pytest.approx(users / 2, abs=1)
