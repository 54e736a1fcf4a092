"""Logs of one's own: `--map`, guesses that are shown and asked for, arm columns, sources of the configuration, undoing a load."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from evalpipe.config import Config
from evalpipe.errors import ConfigError
from evalpipe.store.importers.mapping import guess_mapping
from evalpipe.store.load import LoadSummary
from evalpipe.store.query import open_store
from evalpipe.workspace.load import LoadOptions, load, unload
from evalpipe.workspace.paths import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(root=tmp_path, data=tmp_path / "data", config=None)


def write(folder: Path, *rows: dict[str, Any], name: str = "own.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mapped(workspace: Workspace, path: Path, mapping: str | None = None, **options: Any) -> LoadSummary:
    return load(workspace, [path], options=LoadOptions(mapping=mapping, **options), show_progress=False)


def rows(workspace: Workspace, columns: str) -> list[tuple[Any, ...]]:
    with open_store(workspace.data) as store:
        return store.connection.sql(f"SELECT {columns} FROM exchanges ORDER BY started_at, arm, request_id").fetchall()


def test_a_mapping_says_where_everything_is(workspace: Workspace) -> None:
    path = write(
        workspace.root,
        {
            "in": {"q": "hi?"},
            "out": [{"t": "ho"}],
            "who": 7,
            "when": "1793696400000",
            "ms": "812",
            "n": {"i": 5, "o": "2"},
            "usd": "$0.01",
        },
    )
    mapping = "prompt=in.q, text=$.out[0].t, user=who, time=when, latency_ms=ms, input_tokens=n.i, output_tokens=n.o, cost=usd"
    assert mapped(workspace, path, mapping).n_exchanges == 1
    [row] = rows(workspace, "prompt, text, unit_id, started_at, latency_ms, input_tokens, output_tokens, cost_usd, arm")
    assert row == ("hi?", "ho", "7", datetime(2026, 11, 3, 9, tzinfo=UTC), 812.0, 5, 2, 0.01, "control")


@pytest.mark.parametrize(
    "when",
    [
        "2026-11-03T09:00:00Z",
        "2026-11-03 10:00:00+01:00",
        1793696400,
        "1793696400.0",
        1793696400000,
        1793696400000000,
        1793696400000000000,
    ],
)
def test_times_in_every_unit(workspace: Workspace, when: object) -> None:
    mapped(workspace, write(workspace.root, {"q": "?", "a": "!", "t": when}), "prompt=q, text=a, time=t")
    assert rows(workspace, "started_at") == [(datetime(2026, 11, 3, 9, tzinfo=UTC),)]


def test_two_answers_in_a_row_are_a_pair_with_its_label(workspace: Workspace) -> None:
    path = write(
        workspace.root, {"q": "?", "x": "old", "y": "", "win": "B"}, {"q": "??", "x": "old", "y": "new", "win": "left"}
    )
    summary = mapped(workspace, path, "prompt=q, text_a=x, text_b=y, label=win")
    assert sorted(rows(workspace, "prompt, arm, text, outcome")) == [
        ("?", "control", "old", "ok"), ("?", "treatment", "", "ok"), ("??", "control", "old", "ok"), ("??",
        "treatment", "new", "ok"),
    ]  # fmt: skip
    assert (summary.n_labels, summary.n_rejected) == (1, 1)


def test_equal_rows_without_ids_stay_apart_and_load_once(workspace: Workspace) -> None:
    path = write(workspace.root, *[{"q": "?", "a": "!"}] * 3)
    assert mapped(workspace, path, "prompt=q, text=a").n_exchanges == 3
    assert mapped(workspace, path, "prompt=q, text=a").n_exchanges == 0


WRONG = {
    "prompt": "no TARGET=PATH",
    "promt=q, text=a": "did you mean prompt",
    "prompt=q": "nowhere|where is the answer|neither",
    "user=q": "where is the answer",
    "prompt=q, text_a=a": "both text_a",
    "prompt=q, text=a, text_a=a, text_b=a": "not both",
    "prompt=q, text=answr": "did you mean answer",
    "prompt=q, text=a, text=q": "given twice",
}


@pytest.mark.parametrize("mapping", [one for one in WRONG if one != "prompt=q"])
def test_a_mapping_that_cannot_be_is_one_line(workspace: Workspace, mapping: str) -> None:
    path = write(workspace.root, {"q": "?", "a": "!", "answer": "!"})
    with pytest.raises(ConfigError, match=WRONG[mapping]):
        mapped(workspace, path, mapping)
    assert not (workspace.data / "exchanges").exists()


@pytest.mark.parametrize("mapping", ["prompt=q|Frage, text=a|Antwort (neu)", "prompt=Frage|q, text='Antwort (neu)|a'"])
def test_of_several_paths_the_first_that_is_in_the_file_counts(workspace: Workspace, mapping: str) -> None:
    mapped(workspace, write(workspace.root, {"q": "1?", "a": "one"}, name="x.jsonl"), mapping)
    mapped(workspace, write(workspace.root, {"Frage": "2?", "Antwort (neu)": "two"}, name="y.jsonl"), mapping)
    assert sorted(rows(workspace, "prompt, text")) == [("1?", "one"), ("2?", "two")]


def test_a_column_whose_name_holds_the_bar_is_that_column(workspace: Workspace) -> None:
    path = write(workspace.root, {"q": "?", "a": "part", "a|b": "whole"})
    mapped(workspace, path, "prompt=q, text=a|b")
    assert rows(workspace, "text") == [("whole",)]


def test_a_path_that_is_nowhere_comes_with_the_form_for_several(workspace: Workspace) -> None:
    path = write(workspace.root, {"q": "?", "Antwort, neu": "!"})
    with pytest.raises(ConfigError) as raised:
        mapped(workspace, path, "prompt=q, text=Antwort")
    assert "text=Antwort is nowhere in" in str(raised.value) and "which has q, Antwort, neu" in str(raised.value)
    form = str(raised.value).rpartition('--map "')[2].rstrip('"')
    mapped(workspace, path, f"prompt=q, {form}")
    assert rows(workspace, "text") == [("!",)]


def test_a_guess_is_not_loaded_unasked_and_comes_with_its_line(workspace: Workspace) -> None:
    path = write(workspace.root, {"question": "a?", "answer_a": "x", "answer_b": "y"})
    with pytest.raises(ConfigError, match='--map "prompt=question, text_a=answer_a, text_b=answer_b"') as raised:
        mapped(workspace, path)
    assert "row 1" in str(raised.value)
    assert mapped(workspace, path, yes=True).n_exchanges == 2
    shown: list[str] = []

    def confirm(lines: Sequence[str]) -> bool:
        shown.extend(lines)
        return True

    load(workspace, [path], options=LoadOptions(dry_run=True), confirm=confirm)
    assert any("answer_a" in line for line in shown)


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (
            {"prompt": "a?", "answer": "b", "user": "u", "timestamp": "2026-01-01"},
            "prompt=prompt, text=answer, user=user, time=timestamp",
        ),
        (
            {"Question": "a?", "Old Answer": "b", "New Answer": "c"},
            "prompt=Question, text_a=Old Answer, text_b=New Answer",
        ),
        (
            {"input": "a?", "baselineOutput": "b", "candidateOutput": "c"},
            "prompt=input, text_a=baselineOutput, text_b=candidateOutput",
        ),
        ({"query": "a?", "gpt-4o": "b", "claude-3": "c"}, "prompt=query, text_a=gpt-4o, text_b=claude-3"),
        ({"q": {"messages": [{"role": "user", "content": "x"}]}, "reply": "b"}, "prompt=q.messages, text=reply"),
        ({"prompt": "a?", "response": "b", "latency": 0.8}, "prompt=prompt, text=response, latency_s=latency"),
        ({"a": "x", "b": 1}, None),
    ],
)
def test_columns_are_guessed_by_names_and_values(row: dict[str, Any], line: str | None) -> None:
    guess = guess_mapping([row])
    assert (guess.line() if guess else None) == line


def test_an_arm_column_makes_two_arms_and_a_third_value_none(workspace: Workspace) -> None:
    given = [
        {"q": "?", "a": str(n), "v": v, "t": n + 1e9} for n, v in enumerate(["blue", "green", "blue", "red", None])
    ]
    summary = mapped(workspace, write(workspace.root, *given), "prompt=q, text=a, arm=v, time=t")
    assert rows(workspace, "text, arm") == [("0", "control"), ("1", "treatment"), ("2", "control")]
    assert summary.n_rejected == 2
    unload(workspace, "own.jsonl")
    mapped(workspace, workspace.root / "own.jsonl", "prompt=q, text=a, arm=v, time=t", arms=("red", "blue"))
    assert rows(workspace, "text, arm") == [("0", "treatment"), ("2", "treatment"), ("3", "control")]


@pytest.mark.parametrize(
    ("values", "first"),
    [(("treatment", "control"), "treatment"), (("new", "old"), "treatment"), (("m2", "m1"), "treatment")],
)
def test_words_and_the_models_of_the_configuration_say_which_arm(
    tmp_path: Path, values: tuple[str, str], first: str
) -> None:
    arms = {"control": {"provider": "openai", "model": "m1"}, "treatment": {"provider": "openai", "model": "m2"}}
    config = Config.model_validate({"experiment": {"name": "x"}, "arms": arms})
    workspace = Workspace(root=tmp_path, data=tmp_path / "data", config=config)
    given = [{"q": "?", "a": "!", "v": v, "t": n + 1e9} for n, v in enumerate(values)]
    mapped(workspace, write(tmp_path, *given), "prompt=q, text=a, arm=v, time=t")
    assert rows(workspace, "arm")[0] == (first,)


def test_a_source_of_the_configuration_is_found_by_name_and_by_pattern(tmp_path: Path) -> None:
    sources = {
        "own": {"map": "prompt=q, text=a", "arm": "treatment"},
        "csv": {"files": "*.log", "map": {"prompt": "a", "text": "q"}},
    }
    config = Config.model_validate({"experiment": {"name": "x"}, "sources": sources})
    workspace = Workspace(root=tmp_path, data=tmp_path / "data", config=config)
    mapped(workspace, write(tmp_path, {"q": "1", "a": "2"}), source="own")
    mapped(workspace, write(tmp_path, {"q": "3", "a": "4"}, name="x.log"))
    assert sorted(rows(workspace, "prompt, text, arm")) == [("1", "2", "treatment"), ("4", "3", "control")]
    with pytest.raises(ConfigError, match=r"no \[sources.other\]"):
        mapped(workspace, tmp_path / "x.log", source="other")


def test_a_wrong_load_is_undone_and_what_it_shared_with_another_stays(workspace: Workspace) -> None:
    first = write(workspace.root, {"i": "1", "q": "?", "a": "!", "b": "x"}, name="first.jsonl")
    second = write(
        workspace.root,
        {"i": "1", "q": "?", "a": "!", "b": "x"},
        {"i": "2", "q": "?", "a": "!", "b": "y"},
        name="second.jsonl",
    )
    options = {"mapping": "id=i, prompt=q, text=a"}
    for path in (first, second):
        load(workspace, [path], experiment="e", options=LoadOptions(**options), show_progress=False)
    loads, counted = unload(workspace, "second.jsonl")
    assert (len(loads), counted) == (1, {"exchanges": 1})
    assert rows(workspace, "request_id") == [("1",)]
    with pytest.raises(ConfigError, match=r"no load of second\.jsonl"):
        unload(workspace, "second.jsonl")
    wrong = LoadOptions(mapping="id=i, prompt=q, text=b", replace=True)
    load(workspace, [first], experiment="e", options=wrong, show_progress=False)
    assert rows(workspace, "request_id, text") == [("1", "x")]


def test_costs_are_computed_on_request_and_marked(workspace: Workspace) -> None:
    path = write(
        workspace.root, {"q": "?", "a": "!", "m": "gpt-4o", "i": 1_000_000, "o": 0, "t": "2026-01-01T00:00:00Z"}
    )
    mapping = "prompt=q, text=a, model=m, input_tokens=i, output_tokens=o, time=t"
    mapped(workspace, path, mapping)
    assert rows(workspace, "cost_usd") == [(None,)]
    mapped(workspace, path, mapping, price=True, replace=True)
    [(cost, note)] = rows(workspace, "cost_usd, cost_note")
    assert cost == pytest.approx(2.5)  # gpt-4o: USD 2.50 per million input tokens
    assert "--price" in note


def test_nothing_stored_of_something_rejected_is_a_failure(workspace: Workspace) -> None:
    path = write(workspace.root, {"q": "?", "a": None}, {"q": "?", "a": "!"})
    assert not mapped(workspace, path, "prompt=q, text=a").is_failure
    assert mapped(
        workspace,
        write(workspace.root, {"q": 1, "a": "x", "v": None}, {"q": 1, "v": "x"}, name="b.jsonl"),
        "prompt=q, text=a, arm=v",
    ).is_failure


ODD_TEXTS = (
    "plain",
    "",
    " ",
    "[redacted]",
    '{"role": "assistant", "content": "in JSON"}',
    '{"a": 1}',
    "<think>x</think>y",
    "data: x",
    "é\ud800",
)
ODD_VALUES: tuple[Any, ...] = (
    None,
    "",
    7,
    "7",
    -1,
    "x",
    0.5,
    "1793696400000",
    "2026-11-03T09:00:00Z",
    {"id": 3},
    True,
    "anonymous",
    " u ",
)


@pytest.mark.parametrize("paired", [False, True])
def test_many_rows_at_once_are_read_as_each_row_alone(workspace: Workspace, paired: bool) -> None:
    """Every odd text and value in every column: what is written in batches is what the reader of single rows gives."""
    given: list[dict[str, Any]] = []
    for text in ODD_TEXTS:
        given += [{"q": "a?", "x": text, "y": "z"}, {"q": text, "x": "b", "y": "z"}, {"q": "a?", "x": text, "y": text}]
    for key in ("u", "s", "t", "i", "m", "l", "d", "n", "o", "c", "v"):
        given += [{"q": "a?", "x": "b", "y": "z", key: value} for value in ODD_VALUES]
    everything = {"u": "u", "s": "s", "t": 1, "i": "i", "m": "m", "l": 1, "d": 1, "n": 1, "o": 1, "c": 1, "v": "a"}
    given = [{**everything, "i": None, "v": "a", **row} for row in given]
    for number, row in enumerate(given):  # no two rows are equal
        row["q"] = f"{number}{row['q']}" if row["q"] == "a?" else row["q"]
    sides = {"m": "model", "l": "latency_ms", "n": "input_tokens", "o": "output_tokens"}
    if paired:
        measures = "".join(
            f", {target}_{side}={key}" for key, target in {**sides, "c": "cost_usd"}.items() for side in "ab"
        )
        mapping = f"prompt=q, text_a=x, text_b=y, user=u, session=s, time=t, id=i{measures}"
    else:
        mapping = "prompt=q, text=x, user=u, session=s, time=t, id=i, arm=v, cost=c, latency_s=d" + "".join(
            f", {target}={key}" for key, target in sides.items()
        )
    path = write(workspace.root, *given)
    mapped(workspace, path, mapping)
    alone = Workspace(root=workspace.root, data=workspace.root / "alone", config=None)
    nested = write(workspace.root, *[{"r": row} for row in given], name="nested.jsonl")
    paths = mapping.replace("=", "=r.")  # a path into objects is read row by row
    load(alone, [nested], options=LoadOptions(mapping=paths), show_progress=False)
    names = (
        "request_id, arm, role, unit_id, conversation_id, started_at, model, model_requested, request, text, outcome, endpoint, "
        "latency_ms, input_tokens, output_tokens, cost_usd, prompt, turn, step, streamed"
    )
    with open_store(workspace.data) as many, open_store(alone.data) as one:
        query = f"SELECT {names} FROM exchanges ORDER BY ALL"
        got, expected = many.connection.sql(query).fetchall(), one.connection.sql(query).fetchall()
    assert len(got) > len(given) // 2
    assert got == expected
