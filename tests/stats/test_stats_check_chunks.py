"""The chunks of `make check-statistics`: what was done is kept, and done again only where the code changed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "check_statistics"


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import chunks

    yield chunks
    for name in ("chunks", "lines", "simulated_for_a_test"):
        sys.modules.pop(name, None)


SIMULATION = '''
"""A simulation."""
from chunks import Chunk, Sums


def simulate(chunk: Chunk, *, high: float) -> Sums:
    """Two sums."""
    draws = chunk.rng.random(chunk.n) * high
    return {"total": float(draws.sum()), "first": [float(chunk.first)]}


def report(sums: Sums, *, high: float) -> list:
    return []
'''


def part_of(chunks, folder: Path, monkeypatch: pytest.MonkeyPatch, source: str = SIMULATION, **changed):
    """A part whose module is written here; `changed`: its fields."""
    (folder / "simulated_for_a_test.py").write_text(source)
    monkeypatch.setattr(chunks, "HERE", folder)
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("simulated_for_a_test", None)
    chunks._modules_used.cache_clear()
    chunks._code_digest.cache_clear()
    import simulated_for_a_test as module

    fields = {"replications": 25, "per_chunk": 10, "seed": 3, "parameters": {"high": 2.0}, **changed}
    return chunks.Part(name="a", simulate=module.simulate, report=module.report, **fields)


def test_chunks_cover_the_replications_and_do_not_depend_on_each_other(chunks, tmp_path, monkeypatch) -> None:
    part = part_of(chunks, tmp_path, monkeypatch)
    assert part.chunk_sizes() == [10, 10, 5]
    assert part.chunk_sizes(0.1) == [10]
    assert part.chunk_sizes(0.5) == [10, 10]
    expected = [np.random.default_rng([3, index]).random(n).sum() * 2 for index, n in enumerate([10, 10, 5])]
    backwards = [part.run(index) for index in (2, 1, 0)]
    total = chunks.combined(reversed(backwards))
    assert total["total"] == pytest.approx(sum(expected), rel=1e-12)
    assert total["first"] == [0.0, 10.0, 20.0]
    assert total["replications"] == 25


def test_a_killed_run_goes_on_behind_the_last_whole_line(chunks, tmp_path, monkeypatch) -> None:
    part = part_of(chunks, tmp_path, monkeypatch)
    path = tmp_path / "results.jsonl"
    chunks.Results(path).add(part, 0, part.run(0), 1.5)
    whole = path.read_bytes()
    chunks.Results(path).add(part, 1, part.run(1), 2.0)
    path.write_bytes(path.read_bytes()[:-20])  # killed while the second line was being written
    again = chunks.Results(path)
    assert again.get(part, 0) == part.run(0)
    assert again.get(part, 1) is None
    again.add(part, 1, part.run(1), 2.0)
    assert path.read_bytes().startswith(whole)
    last = chunks.Results(path)
    assert last.get(part, 1) == part.run(1)
    assert last.seconds(part) == 3.5
    last.forget(["a"])
    assert chunks.Results(path).get(part, 0) is None


@pytest.mark.parametrize(
    ("source", "changed", "same"),
    [
        (SIMULATION.replace("Two sums.", "Sums of draws.") + "\n# a remark\n", {}, True),
        (SIMULATION.replace("* high", "* high * 2"), {}, False),
        (SIMULATION, {"parameters": {"high": 3.0}}, False),
        (SIMULATION, {"seed": 4}, False),
        (SIMULATION, {"packages": ("stats", "analysis")}, False),
        (SIMULATION, {"replications": 100}, True),
    ],
)
def test_results_belong_to_the_code_they_came_from(chunks, tmp_path, monkeypatch, source, changed, same) -> None:
    before = part_of(chunks, tmp_path, monkeypatch).fingerprint
    after = part_of(chunks, tmp_path, monkeypatch, source, **changed).fingerprint
    assert (before == after) is same
