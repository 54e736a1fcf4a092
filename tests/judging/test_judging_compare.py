"""`evalpipe compare`: two files of answers, or one with both, to a decision, against the simulated provider."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from evalpipe.errors import ConfigError, DataError
from evalpipe.sim.app import start_sim
from evalpipe.sim.settings import JudgeBehaviour, SimSettings
from evalpipe.store.query import open_store
from evalpipe.workspace.compare import Compared, CompareOptions, compare, normal_prompt
from evalpipe.workspace.paths import open_workspace

WORDS = ("river", "stone", "cloud", "maple", "ember", "harbour", "lantern", "meadow", "thunder", "willow")


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY", "EVALPIPE_DATA"):
        monkeypatch.delenv(name, raising=False)


def write(name: str, rows: list[dict[str, Any]]) -> Path:
    path = Path(name)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(n: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return [f"{' '.join(chance.choices(WORDS, k=10))} {at}" for at in range(n)]


def run(old: Path, new: Path | None, url: str, said: list[str], **options: Any) -> Compared:
    chosen = CompareOptions(
        judge_model="claude-haiku-4-5", judge_base_url=url, show_progress=False, **{"yes": True, **options}
    )
    return compare(open_workspace(), old, new, chosen, output=said.append, confirm=None)


@pytest.mark.timeout(600)
def test_two_files_become_a_decision_in_a_folder_of_their_own_and_nothing_is_paid_twice(tmp_path: Path) -> None:
    """Labels say that every new answer is the better one; a judge that is always right ships it."""
    prompts = [f"Question {n} about {WORDS[n % 10]}?" for n in range(60)]
    old, new = answers(60, 1), answers(60, 2)
    first = write("old.jsonl", [{"prompt": prompt, "answer": text} for prompt, text in zip(prompts, old, strict=True)])
    shuffled = list(zip(prompts, new, strict=True))
    random.Random(3).shuffle(shuffled)
    rows = [{"question": f"  {prompt.upper()} ", "response": text} for prompt, text in shuffled[:-2]]
    second = write("new.jsonl", [*rows, {"question": "asked of nobody else?", "response": "alone"}])
    labelled = write(
        "labels.jsonl",
        [
            {"pair_id": str(n), "prompt": prompt, "response_a": a, "response_b": b, "label": "b"}
            for n, (prompt, a, b) in enumerate(zip(prompts, old, new, strict=True))
        ],
    )
    said: list[str] = []
    settings = SimSettings(
        judge=JudgeBehaviour(behaviour="stated", accuracy=1.0, pairs=labelled), ttft_ms=0.0, speed=1000
    )
    with start_sim(settings) as sim:
        done = run(first, second, sim.base_url, said, max_usd=5.0)
        asked = done.summary.n_calls
        again = run(first, second, sim.base_url, said, max_usd=5.0)
    assert (done.n_pairs, asked, again.summary.n_calls) == (58, 2 * 58, 0)
    [win_rate] = [one for one in done.report.analysis.metrics if one.name == "win_rate"]
    assert (win_rate.finding, win_rate.n) == ("better", 58)
    assert done.report.analysis.decision.recommendation != "keep"
    assert done.report.html.is_relative_to(tmp_path / "evalpipe-old-vs-new") and done.report.html.exists()
    text = "\n".join(said)
    assert "58 pairs (58 by prompt)" in text and "2 answers of old.jsonl" in text and "asked of nobody else?" in text
    assert "claude-haiku-4-5" in text and "116 calls" in text and "$" in text
    with open_store(done.workspace.data, done.experiment) as store:
        pairs = store.connection.sql("SELECT control_text, treatment_text FROM pairs").fetchall()
    assert set(pairs) == {
        (a, b) for (p, a, b) in zip(prompts, old, new, strict=True) if any(p == q for q, _ in shuffled[:-2])
    }


def test_one_file_with_both_answers_and_other_answers_under_the_same_name(tmp_path: Path) -> None:
    rows = [{"id": str(n), "q": f"q {n}?", "x": text, "y": f"{text}!"} for n, text in enumerate(answers(12, 5))]
    path = write("both.jsonl", rows)
    said: list[str] = []
    with start_sim(SimSettings(ttft_ms=0.0, speed=1000)) as sim:
        done = run(path, None, sim.base_url, said, mapping="prompt=q, text_a=x, text_b=y, id=id")
        write("both.jsonl", [{**row, "y": "another"} for row in rows])
        changed = run(path, None, sim.base_url, said, mapping="prompt=q, text_a=x, text_b=y, id=id")
    assert (done.experiment, done.n_pairs, changed.experiment) == ("both", 12, "both-2")


def german() -> tuple[Path, Path]:
    """Two files whose columns differ: three answers with their users, two without in a table with a time."""
    old = write("old.jsonl", [{"frage": f"{n}?", "antwort": f"alt {n}", "who": f"u{n}"} for n in range(3)])
    new = Path("new.csv")
    new.write_text(
        "FRAGE;Antwort (neu);when\n" + "".join(f"{n}?;neu {n};2026-11-0{n + 1}T00:00:00Z\n" for n in range(2))
    )
    return old, new


@pytest.mark.parametrize("swapped", [False, True])
def test_files_with_other_columns_are_paired_and_what_one_lacks_comes_from_the_other(swapped: bool) -> None:
    old, new = german()[::-1] if swapped else german()
    said: list[str] = []
    mapping = "prompt=frage, text=antwort|Antwort (neu), user=who, time=when"
    with start_sim(SimSettings(ttft_ms=0.0, speed=1000)) as sim:
        done = run(old, new, sim.base_url, said, mapping=mapping)
    with open_store(done.workspace.data, done.experiment) as store:
        found = store.connection.sql(
            "SELECT prompt, text, arm, unit_id, CAST(started_at AT TIME ZONE 'UTC' AS DATE)::VARCHAR FROM exchanges "
            "WHERE role = 'imported' ORDER BY ALL"
        ).fetchall()
    arms = {"alt": "treatment" if swapped else "control", "neu": "control" if swapped else "treatment"}
    assert found == [
        (f"{n}?", f"{word} {n}", arms[word], f"u{n}", f"2026-11-0{n + 1}") for n in range(2) for word in ("alt", "neu")
    ]
    assert "    from one file only: user (in old.jsonl); time (in new.csv)" in said
    side = "treatment" if swapped else "control"
    assert f"    1 answer of old.jsonl ({side}) has no partner and is left out:" in said


def test_an_id_that_one_file_lacks_pairs_nothing_and_a_prompt_may_be_missing_where_ids_are() -> None:
    old = write("old.jsonl", [{"key": n, "q": f"{n}?", "a": "x"} for n in range(2)])
    new = write("new.jsonl", [{"q": f"{1 - n}?", "a": "y"} for n in range(2)])
    keyed = write("keyed.jsonl", [{"key": n, "a": "y"} for n in range(2)])
    said: list[str] = []
    with start_sim(SimSettings(ttft_ms=0.0, speed=1000)) as sim:
        run(old, new, sim.base_url, said, mapping="prompt=q, text=a, id=key")
        assert "    2 pairs (2 by prompt)" in said
        assert "    from one file only: id (in old.jsonl, so it pairs nothing)" in said
        run(old, keyed, sim.base_url, said, mapping="prompt=q, text=a, id=key")
    assert "    2 pairs (2 by id)" in said and "    from one file only: prompt (in old.jsonl)" in said


def test_what_no_file_has_or_a_file_cannot_do_without_is_refused() -> None:
    old, new = german()
    one = write("one.jsonl", [{"q": "?", "a": "x", "b": "y"}])
    for files, mapping, words in (
        (
            (old, new),
            "prompt=frage, text=antwort|Antwort (neu), user=whom",
            "user=whom is nowhere in old.jsonl, .* nor in",
        ),
        ((old, new), "prompt=frage, text=antwort", r"nowhere in new.csv.*--map \"text=antwort\|Antwort \(neu\)\""),
        ((old, new), "prompt=who, text=antwort|Antwort (neu)", "prompt=who is nowhere in new.csv"),
        ((one, None), "prompt=q, text_a=a, text_b=b, user=who", "user=who is nowhere in one.jsonl"),
    ):
        with pytest.raises(ConfigError, match=words):
            run(files[0], files[1], "http://127.0.0.1:1", [], mapping=mapping)


def test_a_folder_without_a_log_is_reported_by_its_first_files() -> None:
    folder = Path("notes")
    folder.mkdir()
    for n in range(1200):
        (folder / f"{n:04}.txt").write_text("words " * 30)
    with pytest.raises(DataError, match=r"; and 1,197 more$") as raised:
        run(folder, folder, "http://127.0.0.1:1", [])
    assert "0000.txt" in str(raised.value) and len(str(raised.value)) < 600


def test_repeated_prompts_pair_in_order_and_ids_of_rows_are_not_believed() -> None:
    first = write("a.jsonl", [{"id": n, "prompt": "same?" if n < 2 else f"p{n}?", "answer": f"a{n}"} for n in range(4)])
    second = write(
        "b.jsonl", [{"id": n, "prompt": f"p{3 - n}?" if n < 2 else "same?", "answer": f"b{n}"} for n in range(4)]
    )
    said: list[str] = []
    with start_sim(SimSettings(ttft_ms=0.0, speed=1000)) as sim:
        done = run(first, second, sim.base_url, said)
    with open_store(done.workspace.data, done.experiment) as store:
        pairs = store.connection.sql("SELECT control_text, treatment_text FROM pairs ORDER BY 1").fetchall()
    assert pairs == [("a0", "b2"), ("a1", "b3"), ("a2", "b1"), ("a3", "b0")]


def test_without_a_key_a_yes_or_a_pair_it_is_one_line_and_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    first = write("a.jsonl", [{"prompt": "p?", "answer": "x"}])
    second = write("b.jsonl", [{"prompt": "p?", "answer": "y"}])
    other = write("c.jsonl", [{"prompt": "other?", "answer": "y"}])

    def attempt(old: Path, new: Path | None, **options: Any) -> None:
        compare(
            open_workspace(),
            old,
            new,
            CompareOptions(show_progress=False, **options),
            output=lambda line: None,
            confirm=None,
        )

    with pytest.raises(ConfigError, match="no judge: set one of ANTHROPIC_API_KEY"):
        attempt(first, second, yes=True)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-unused")
    with pytest.raises(ConfigError, match=r"costs money \(2 calls for 1 pair, about \$0\.\d+\): add --yes"):
        attempt(first, second)
    with pytest.raises(DataError, match="neither an id nor a prompt is in both"):
        attempt(first, other, yes=True)
    with pytest.raises(ConfigError, match="one answer to each prompt"):
        attempt(first, None, yes=True)
    with pytest.raises(ConfigError, match="whose model is it"):
        attempt(first, second, yes=True, judge_model="qwen-max")


@pytest.mark.parametrize(("one", "other"), [("A  b?\n", "a b?"), ("ﬁne", "fine"), ("É", "é")])
def test_prompts_are_equal_but_for_blanks_case_and_forms_of_letters(one: str, other: str) -> None:
    assert normal_prompt(one) == normal_prompt(other)
