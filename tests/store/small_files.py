"""A store of many small files, as frequent loads leave it, written without the look for known keys that takes most of a load."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

from evalpipe.models import Arm, Exchange, Judgment, JudgmentStatus, Outcome, Role, ShownFirst
from evalpipe.store.parquet import ParquetFile, partition_folder
from evalpipe.store.schema import BY_NAME, to_table

START = datetime(2026, 7, 1, tzinfo=UTC)
CONFIG = """
[experiment]
name = "exp"
[arms.control]
provider = "openai"
model = "gpt-4o"
[arms.treatment]
provider = "anthropic"
model = "claude-haiku-4-5"
"""


def pair(n: int, at: datetime, chance: random.Random) -> list[Exchange]:
    """The two answers of request n: 80 to 400 words each, latencies and costs drawn by `chance`."""
    prompt = f"Question {n}: " + " ".join(chance.choices(_WORDS, k=40))
    rows = []
    for arm, role, model in (
        (Arm.CONTROL, Role.SERVED, "gpt-4o"),
        (Arm.TREATMENT, Role.SHADOW, "claude-haiku-4-5"),
    ):
        text = " ".join(chance.choices(_WORDS, k=chance.randrange(80, 400)))
        rows.append(
            Exchange(
                request_id=f"r{n}", arm=arm, role=role, unit_id=f"u{n % 997}", conversation_id=f"c{n}", started_at=at,
                provider="openai", endpoint="chat.completions", model_requested=model, model=model, prompt=prompt, text=text,
                request=f'{{"messages": [{{"role": "user", "content": "{prompt}"}}]}}', response=f'{{"text": "{text}"}}',
                outcome=Outcome.OK, status=200, latency_ms=chance.lognormvariate(6.5, 0.4), ttft_ms=200.0, streamed=False,
                input_tokens=60, output_tokens=len(text.split()), cost_usd=chance.lognormvariate(-7, 0.3), turn=1, step=0,
                shadow_status="sampled" if arm is Arm.CONTROL else None, simulated=False,
            )
        )  # fmt: skip
    return rows


def judgment(n: int, at: datetime, chance: random.Random) -> Judgment:
    """One verdict on request n, control shown first."""
    return Judgment(
        key=f"k{n}", attempt=1, request_id=f"r{n}", judge="pairwise", judge_fingerprint="f", judge_model="m",
        shown_first=ShownFirst.CONTROL, status=JudgmentStatus.OK, preference=float(chance.random() < 0.6), cost_usd=0.001,
        reasoning=" ".join(chance.choices(_WORDS, k=30)), control_scores={"quality": 4.0}, judged_at=at,
    )  # fmt: skip


def write_small_files(
    root: Path, n_files: int, *, n_days: int = 1, pairs_in_file: int = 2, n_judgment_files: int = 0, seed: int = 7
) -> list[Path]:
    """`n_files` files of exchanges, spread evenly over days, and files of judgments; the files."""
    chance = random.Random(seed)
    data = root / "data"
    (root / "evalpipe.toml").write_text(CONFIG)
    written: list[Path] = []
    for number in range(n_files):
        day = number * n_days // n_files
        at = START + timedelta(days=day, seconds=86_000 * (number * n_days % n_files) / n_files)
        first = number * pairs_in_file
        rows = [row for n in range(first, first + pairs_in_file) for row in pair(n, at, chance)]
        folder = partition_folder(data, BY_NAME["exchanges"], ("exp", f"{at:%Y-%m-%d}"))
        written.append(_write(folder, "exchanges", rows, at))
    for number in range(n_judgment_files):
        verdicts = [judgment(number * 5 + m, START, chance) for m in range(5)]
        folder = partition_folder(data, BY_NAME["judgments"], ("exp",))
        written.append(_write(folder, "judgments", verdicts, START + timedelta(seconds=number)))
    return written


def _write(folder: Path, name: str, rows: list[Exchange] | list[Judgment], at: datetime) -> Path:
    schema = BY_NAME[name].schema
    stem = f"{at:%Y%m%dT%H%M%S}-{_unique():012x}"
    file = ParquetFile(folder, schema, stem=stem)
    file.append(to_table(schema, rows))
    return file.finish()


_made = [0]


def _unique() -> int:
    _made[0] += 1
    return _made[0]


_WORDS = """
the answer is that a refund takes three days after we have received your parcel please write to support with order number invoice
address payment card bank transfer delivery tracking return label size colour warranty repair shop
""".split()  # noqa: SIM905 - read as a text
