"""Write a Markdown file as one comment of a pull request (GitHub) or merge request (GitLab): updated, never repeated.

    python comment.py github evalpipe.md my-experiment
    python comment.py gitlab evalpipe.md my-experiment

The comment is found again by a hidden mark in its first line. Everything else comes from the environment, as the CI systems
set it. Outside of a pull request nothing is written. It needs Python alone.
"""

from __future__ import annotations

import json
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PER_PAGE = 100
MOST_PAGES = 50
MOST_CHARACTERS = 60_000
"""GitHub takes 65,536"""


@dataclass(frozen=True)
class Place:
    """Where comments are: the addresses of the list and of one, the method that changes one, and what shows who asks."""

    comments: str
    comment: str
    change: str
    headers: dict[str, str]


def github() -> Place | None:
    number = os.environ.get("PULL_REQUEST", "")
    if not number:
        return None
    repository = f"{required('GITHUB_API_URL')}/repos/{required('GITHUB_REPOSITORY')}"
    return Place(
        comments=f"{repository}/issues/{int(number)}/comments",
        comment=f"{repository}/issues/comments/",
        change="PATCH",
        headers={"Authorization": f"Bearer {required('GITHUB_TOKEN')}", "Accept": "application/vnd.github+json"},
    )


def gitlab() -> Place | None:
    number = os.environ.get("CI_MERGE_REQUEST_IID", "")
    if not number:
        return None
    project = urllib.parse.quote(required("CI_PROJECT_ID"), safe="")
    notes = f"{required('CI_API_V4_URL')}/projects/{project}/merge_requests/{int(number)}/notes"
    return Place(
        comments=notes,
        comment=f"{notes}/",
        change="PUT",
        headers={"PRIVATE-TOKEN": required("EVALPIPE_GITLAB_TOKEN")},
    )


def required(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        sys.exit(f"comment.py: the environment variable {name} is not set")
    return value


def call(place: Place, method: str, url: str, document: dict[str, str] | None = None) -> Any:
    request = urllib.request.Request(
        url,
        method=method,
        data=None if document is None else json.dumps(document).encode(),
        headers={**place.headers, "Content-Type": "application/json", "User-Agent": "evalpipe"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def ours(place: Place, mark: str) -> Iterator[str]:
    """The ids of comments that begin with the mark, the first one first."""
    for page in range(1, MOST_PAGES + 1):
        found = call(place, "GET", f"{place.comments}?per_page={PER_PAGE}&page={page}")
        yield from (str(one["id"]) for one in found if str(one["body"]).startswith(mark))
        if len(found) < PER_PAGE:
            return


def main(system: str, file: str, name: str) -> None:
    places = {"github": github, "gitlab": gitlab}
    if system not in places or not re.fullmatch(r"[A-Za-z0-9._~-]{1,80}", name):
        sys.exit(f"usage: comment.py {'|'.join(places)} FILE.md EXPERIMENT")
    place = places[system]()
    if place is None:
        print("no pull request: no comment is written")
        return
    mark = f"<!-- evalpipe: {name} -->"
    text = Path(file).read_text(encoding="utf-8")
    if len(text) > MOST_CHARACTERS:
        text = text[:MOST_CHARACTERS] + "\n\n… cut: the report has the rest\n"
    body = {"body": f"{mark}\n{text}"}
    try:
        for number in ours(place, mark):
            try:
                call(place, place.change, place.comment + number, body)
            except urllib.error.HTTPError as error:
                if error.code not in {403, 404}:  # somebody else's, who wrote the same mark
                    raise
            else:
                print(f"updated comment {number}")
                return
        print(f"wrote comment {call(place, 'POST', place.comments, body)['id']}")
    except OSError as error:
        sys.exit(f"comment.py: the comment could not be written: {error}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: comment.py github|gitlab FILE.md EXPERIMENT")
    main(*sys.argv[1:])
