"""Real recorded judgements and labels: the numbers equal those of statsmodels and scipy, computed from the files."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.inter_rater import cohens_kappa

from evalpipe.analysis.result import Analysis
from evalpipe.workspace.analyze import analyze_workspace
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import open_workspace

pytestmark = pytest.mark.shared
SCORES = {"a": 0.0, "tie": 0.5, "b": 1.0}
PUBLISHED = {
    "gpt-3.5-turbo-1106_verbose": (12.7632, 1.0442),
    "gpt-3.5-turbo-1106": (9.1780, 0.8904),
    "gpt-3.5-turbo-1106_concise": (7.4159, 0.8374),
    "gemma-2b-it": (3.4020, 0.5390),
    "FuseChat-Llama-3.2-1B-Instruct": (29.9219, 1.3935),
    "gpt4_1106_preview": (50.0, 0.0),
}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def analyses(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Analysis]:
    """Loads and analyses a file once, however many tests ask for it."""

    @cache
    def analysis(path: Path) -> Analysis:
        workspace = open_workspace(root=tmp_path_factory.mktemp("pairs"))
        load(workspace, [path])
        return analyze_workspace(workspace, details=False)

    return analysis


@pytest.mark.parametrize("model", PUBLISHED)
def test_alpaca_eval_win_rates_as_published(shared: Path, analyses: Callable[[Path], Analysis], model: str) -> None:
    found = analyses(shared / "data" / "pairs" / f"alpaca_eval2_{model}.jsonl")
    judge = found.judges[0]
    rate, error = PUBLISHED[model]
    assert judge.win_rate == pytest.approx(rate / 100, abs=1e-6)
    assert judge.standard_error == pytest.approx(error / 100, abs=1e-6)
    if model == "gpt4_1106_preview":  # against itself
        assert (found.decision.recommendation, found.decision.rule) == ("keep", "no_gain")
        assert not any(one.finding in {"worse", "better"} for one in found.metrics)


def _conversation(row: dict[str, Any]) -> str:
    prompt = row["prompt"]
    return prompt if isinstance(prompt, str) else next(m["content"] for m in prompt if m["role"] == "user")


def _clustered_error(values: list[float], clusters: list[str]) -> float:
    """Delete-one-cluster jackknife of a mean, by leaving each cluster out."""
    x, names = np.array(values), np.array(clusters)
    without = np.array([x[names != name].mean() for name in sorted(set(clusters))])
    g = len(without)
    return math.sqrt((g - 1) / g * np.sum((without - x.mean()) ** 2))


@pytest.mark.parametrize("name", ["llmbar_natural", "mtbench_phi3"])
def test_judges_kappas_and_labels_equal_independent_libraries(
    shared: Path, analyses: Callable[[Path], Analysis], name: str
) -> None:
    path = shared / "data" / "pairs" / f"{name}.jsonl"
    lines = _rows(path)
    found = {judge.name: judge for judge in analyses(path).judges}
    verdicts: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for line in lines:
        for one in line["judgements"]:
            judge = one["judge"] + (f"/{one['method']}" if one.get("method") else "")
            score = one.get("preference") if one.get("preference") is not None else SCORES.get(one["verdict"])
            if score is not None:
                verdicts[judge][line["pair_id"]][one["order"]].append(score)
    conversations = {line["pair_id"]: _conversation(line) for line in lines}
    labels = {line["pair_id"]: line["label"] for line in lines if line["label"]}
    assert set(found) >= set(verdicts)
    for judge, pairs in verdicts.items():
        x = {pair: float(np.mean([np.mean(scores) for scores in orders.values()])) for pair, orders in pairs.items()}
        got = found[judge]
        assert got.n_pairs == len(x)
        assert got.win_rate == pytest.approx(np.mean(list(x.values())), abs=1e-12)
        error = _clustered_error(list(x.values()), [conversations[pair] for pair in x])
        assert got.standard_error == pytest.approx(error, abs=1e-9)
        both = [pair for pair in x if set(pairs[pair]) >= {"ab", "ba"}]
        same = sum(np.sign(np.mean(pairs[p]["ab"]) - 0.5) == np.sign(np.mean(pairs[p]["ba"]) - 0.5) for p in both)
        assert (got.n_both_orders, got.consistency) == (len(both), pytest.approx(same / len(both)) if both else None)
        labelled = [pair for pair in x if pair in labels]
        if labelled:
            _check_agreement(got, [(x[p], SCORES[labels[p]]) for p in labelled])


def _check_agreement(got: Any, scores: list[tuple[float, float]]) -> None:
    signs = [(int(np.sign(a - 0.5)), int(np.sign(b - 0.5))) for a, b in scores]
    used = sorted({s for pair in signs for s in pair})
    table = np.zeros((len(used), len(used)))
    for judged, labelled in signs:
        table[used.index(judged), used.index(labelled)] += 1
    assert got.agreement.n_labels == len(scores)
    assert got.agreement.accuracy == pytest.approx(np.trace(table) / table.sum())
    if len(used) > 1 and got.agreement.kappa is not None:
        assert got.agreement.kappa == pytest.approx(cohens_kappa(table).kappa, abs=1e-9)


@pytest.mark.parametrize("name", ["gsm8k_mixtral_gpt4", "llmbar_natural"])
def test_labels_are_shown_as_judges_with_mcnemars_p(
    shared: Path, analyses: Callable[[Path], Analysis], name: str
) -> None:
    path = shared / "data" / "pairs" / f"{name}.jsonl"
    lines = _rows(path)
    found = {judge.name: judge for judge in analyses(path).judges}
    for source in {line["label_source"] for line in lines}:
        labels = [line["label"] for line in lines if line["label_source"] == source and line["label"]]
        wins, losses, ties = labels.count("b"), labels.count("a"), labels.count("tie")
        got = found[f"label:{source}"]
        assert (got.wins, got.losses, got.ties) == (wins, losses, ties)
        x = [SCORES[label] for label in labels]
        assert got.win_rate == pytest.approx(np.mean(x))
        assert got.standard_error == pytest.approx(stats.sem(x), abs=1e-9)
        expected = mcnemar([[0, wins], [losses, 0]], exact=True).pvalue
        assert got.p_value == pytest.approx(expected, rel=1e-9)
