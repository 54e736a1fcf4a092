"""The looks of an experiment on disk: reports/NAME/<UTC instant>.json and .html, the page of its history, the folder's index."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from evalpipe.errors import DataError
from evalpipe.files import unlink_synced, write_atomically
from evalpipe.report.history import KeptLook, Look, is_change, read_look
from evalpipe.report.render import Listed, render_history, render_index

INDEX = "index.html"
MOST_DRAWN = 400
"""looks on the page of a history: the last of each day, and those that changed the decision"""
_STAMP = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d)(\d\d)(\d\d)?Z")

Check = Callable[[bytes, str], bytes]
"""(a file's bytes, its name) → what may be written: without the workspace's keys"""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredLook:
    """A look's JSON; `html` is its page, there or not."""

    at: datetime
    json: Path

    @property
    def html(self) -> Path:
        return self.json.with_suffix(".html")


def stored_looks(folder: Path) -> list[StoredLook]:
    """The looks kept in reports/NAME, oldest first; other files are left out."""
    found = []
    for path in folder.glob("*.json"):
        match = _STAMP.fullmatch(path.stem)
        if match is not None:
            year, month, day, hour, minute, second = (int(part or 0) for part in match.groups())
            try:
                at = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
            except ValueError:
                continue
            found.append(StoredLook(at=at, json=path))
    return sorted(found, key=lambda one: (one.at, one.json.name))


def look_before(folder: Path, now: Look) -> Look | None:
    """The look that `now` is compared with: the latest one of other data, else the latest one; None before the first.

    A report made again of the same data is no news: what changed since Monday stays there until there are new data.
    """
    latest: Look | None = None
    for stored in reversed(stored_looks(folder)):
        look = _read(stored)
        if look is None:
            continue
        if look.data != now.data:
            return look
        latest = latest or look
    return latest


def keep_look(reports: Path, look: Look, *, page: bytes, document: bytes, keep_days: int, check: Check) -> None:
    """Keep a look, take out what is no longer kept, and renew the page of the history and the folder's index.

    The JSON of every look is kept; the HTML of the last look of a day (UTC), and of each that changed the decision.
    A folder that nobody may write to is no error: the report itself is elsewhere then.

    Args:
        reports: the folder of all reports.
        look: the one of now.
        page: its HTML.
        document: its JSON.
        keep_days: older looks are deleted; 0: none.
        check: the last look at what is written.
    """
    folder = reports / look.experiment
    path = _place(folder, look)
    if not write_atomically(path, check(document, path.name), optional=True):
        return
    write_atomically(path.with_suffix(".html"), check(page, path.with_suffix(".html").name), optional=True)
    stored = stored_looks(folder)
    now = next(one for one in stored if one.json == path)
    unlink_synced(_too_old(stored, now.at, keep_days))
    stored = stored_looks(folder)
    unlink_synced(_superseded(stored, now))
    latest = reports / f"{look.experiment}.html"
    write_history(folder, latest=f"../{latest.name}" if latest.exists() else now.html.name, check=check)
    write_index(reports, check=check)


def _place(folder: Path, look: Look) -> Path:
    """The name of a look's JSON: to the minute, or to the second where another look has that minute."""
    at = datetime.fromisoformat(look.generated_at)
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    path = folder / f"{at:%Y-%m-%dT%H%M}Z.json"
    there = _read(StoredLook(at=at, json=path))
    if there is None or (there.data, there.decision.recommendation) == (look.data, look.decision.recommendation):
        return path
    return folder / f"{at:%Y-%m-%dT%H%M%S}Z.json"


def _read(stored: StoredLook) -> Look | None:
    """The look; None where the file is gone or damaged, which must not keep a new one from being written."""
    try:
        return read_look(stored.json.read_bytes())
    except (OSError, msgspec.DecodeError):
        return None


def _too_old(stored: Sequence[StoredLook], now: datetime, keep_days: int) -> Iterable[Path]:
    if keep_days:
        for one in stored:
            if one.at < now - timedelta(days=keep_days):
                yield from (one.json, one.html)


def _superseded(stored: Sequence[StoredLook], now: StoredLook) -> list[Path]:
    """Pages of earlier looks of the day of `now` that changed no decision."""
    found = []
    for place, one in enumerate(stored):
        if one.at.date() != now.at.date() or one.json == now.json or one.at > now.at or not one.html.exists():
            continue
        look = _read(one)
        if look is not None and not is_change(_look_at(stored, place - 1), look):
            found.append(one.html)
    return found


def _look_at(stored: Sequence[StoredLook], place: int) -> Look | None:
    return _read(stored[place]) if place >= 0 else None


def write_history(folder: Path, *, latest: str, check: Check) -> Path | None:
    """index.html of reports/NAME; None where no look can be read."""
    kept = []
    stored = stored_looks(folder)
    days = {one.at.date(): one for one in stored}  # the last of each day
    drawn = [one for one in stored if days[one.at.date()] is one or one.html.exists()]
    for one in drawn[-MOST_DRAWN:]:
        look = _read(one)
        if look is not None:
            kept.append(KeptLook(look=look, href=one.html.name if one.html.exists() else one.json.name))
    if not kept:
        return None
    page = folder / INDEX
    write_atomically(page, check(render_history(kept, latest=latest).encode(), page.name), optional=True)
    return page


def write_index(folder: Path, *, check: Check) -> tuple[Path, int]:
    """index.html of a folder of reports, and how many it lists. Files that are no report are counted on the page."""
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: `evalpipe report` makes it")
    found: list[Listed] = []
    skipped = 0
    for path in sorted(folder.glob("*.json")):
        html = path.with_suffix(".html")
        try:
            look = read_look(path.read_bytes())
        except (OSError, msgspec.DecodeError):
            skipped += 1
            continue
        history = f"{look.experiment}/{INDEX}"
        found.append(
            Listed(
                look=look,
                name=html.name if html.exists() else path.name,
                history=history if (folder / history).is_file() else "",
            )
        )
    page = folder / INDEX
    write_atomically(page, check(render_index(found, skipped=skipped).encode(), page.name))
    return page, len(found)
