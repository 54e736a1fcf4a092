"""The definitions of `make check-mutations` are up to date: each fault fits the code of today, and its tests are there."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from mutations.run import ROOT, Mutation, main, read_mutations

MUTATIONS = read_mutations()


@cache
def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("area", sorted({one.area for one in MUTATIONS}))
def test_every_definition_fits_the_code(area: str) -> None:
    """A text that occurs once, Python that compiles with the fault in it, and tests that exist."""
    faults = [fault for one in MUTATIONS if one.area == area for fault in (*one.faults(ROOT), *_faults(one))]
    assert faults == []


def _faults(one: Mutation) -> list[str]:
    found = [f"{one.name}: {test} is no test" for test in one.tests if not _is_test(test)]
    for edit in one.edits:
        if edit.file.endswith(".py"):
            changed = (ROOT / edit.file).read_text("utf-8").replace(edit.old, edit.new, 1)
            try:
                ast.parse(changed)
            except SyntaxError as error:
                found.append(f"{one.name}: {edit.file} does not compile: {error}")
        if edit.old == edit.new:
            found.append(f"{one.name}: nothing is changed in {edit.file}")
    return found


def _is_test(test: str) -> bool:
    path, _, name = test.partition("::")
    return name.startswith("test_") and (ROOT / path).is_file() and name.partition("[")[0] in names_in(ROOT / path)


def test_every_name_is_used_once() -> None:
    assert [name for name, n in Counter(one.name for one in MUTATIONS).items() if n > 1] == []
    assert all(one.tests and one.edits for one in MUTATIONS)


def test_an_unknown_name_and_an_outdated_text_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="no mutation or area 'nothing-like-it'"):
        main(["nothing-like-it"])
    monkeypatch.setattr("mutations.run.ROOT", tmp_path)
    name = MUTATIONS[0].name
    assert main([name]) == 2
    assert capsys.readouterr().err.startswith(f"{name}: its text occurs 0 times in {MUTATIONS[0].edits[0].file}")
