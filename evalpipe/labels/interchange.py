"""Pairs and labels as files of other tools: CSV, Label Studio's JSON tasks, Argilla's JSON records. Pure.

A file is as blind as the page: `pair` replaces the request's id, and which arm is the first answer was drawn for the file. So a
label in it is about the first or the second answer; `read_labels` turns that into arms by the same
draw.

Label Studio: a list of tasks, `data` and `annotations[].result[]` of type `pairwise` with `value.selected` left or right; a
submitted annotation without a selection is a tie, one with `was_cancelled` was skipped. Argilla: a list of records as
`dataset.records.to_json` writes them, with `responses.QUESTION[] = {value, user_id}`.
"""

from __future__ import annotations

import csv
import io
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

from evalpipe.errors import DataError
from evalpipe.text import well_formed

Format = Literal["csv", "label-studio", "argilla"]
FORMATS: tuple[str, ...] = get_args(Format)

_NAMESPACE = uuid.UUID("5f1dd6b4-3c53-5d0e-9a39-6e2c1f7b8a10")
_QUESTION, _COMMENT = "better", "comment"
_CHOICES = {
    "1": 1.0, "left": 1.0, "answer_1": 1.0, "answer 1": 1.0, "answer1": 1.0, "first": 1.0,
    "2": 0.0, "right": 0.0, "answer_2": 0.0, "answer 2": 0.0, "answer2": 0.0, "second": 0.0,
    "0": 0.5, "tie": 0.5, "equal": 0.5, "both": 0.5,
}  # fmt: skip
"""what is written for the preference of the first answer"""
_ARMS = {"a": 0.0, "control": 0.0, "b": 1.0, "treatment": 1.0, "tie": 0.5}
LABEL_STUDIO_CONFIG = """\
<View>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="better" toName="answer1,answer2"/>
  <Text name="answer1" value="$answer1"/>
  <Text name="answer2" value="$answer2"/>
  <TextArea name="comment" toName="prompt"/>
</View>
"""
"""the labelling interface that fits the tasks"""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileLabel:
    """A label in a file. `first`: the preference for the first answer: 1, 0.5 or 0; or `treatment`, where the file names arms."""

    pair: str
    labeler: str | None
    first: float | None = None
    treatment: float | None = None
    comment: str | None = None
    at: str | None = None
    scores: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True, kw_only=True, slots=True)
class FilePair:
    """A pair in a file, with its labels."""

    pair: str
    prompt: str
    answer_1: str
    answer_2: str
    probability: float | None = None
    stratum: str | None = None
    labels: Sequence[FileLabel] = field(default_factory=tuple)


def write_pairs(pairs: Sequence[FilePair], format_name: Format) -> str:
    """The file's text."""
    if format_name == "csv":
        return _csv(pairs)
    documents = [_task(pair) if format_name == "label-studio" else _record(pair) for pair in pairs]
    return json.dumps([_clean(document) for document in documents], ensure_ascii=False, indent=1) + "\n"


def read_labels(
    text: str, format_name: Format | None, *, labeler: str | None = None, known: Sequence[str] = ()
) -> list[FileLabel]:
    """The labels in a file of one of the formats.

    Args:
        text: of the file.
        format_name: None: recognised by its content.
        labeler: of labels whose file names nobody.
        known: names of people; an Argilla user whose id was made of one of them is that person.

    Raises:
        DataError: for a file that is none of the formats, or a label that cannot be read; it names the place.
    """
    name = format_name or _recognised(text)
    if name == "csv":
        return list(_csv_labels(text, labeler))
    try:
        documents = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the file is not JSON: {error}") from None
    if not isinstance(documents, list) or not all(isinstance(one, dict) for one in documents):
        raise DataError("the file is not a list of tasks or records")
    if name == "label-studio":
        return [label for place, task in enumerate(documents, 1) for label in _task_labels(task, place, labeler)]
    ids = {user_id(person): person for person in known}
    return [label for place, record in enumerate(documents, 1) for label in _record_labels(record, place, labeler, ids)]


def user_id(labeler: str) -> str:
    """The id of a person as an Argilla user."""
    return str(uuid.uuid5(_NAMESPACE, labeler))


def _recognised(text: str) -> Format:
    if text.lstrip()[:1] != "[":
        return "csv"
    try:
        documents = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the file is not JSON: {error}") from None
    first = next((one for one in documents if isinstance(one, dict)), {}) if isinstance(documents, list) else {}
    if "data" in first:
        return "label-studio"
    if "fields" in first:
        return "argilla"
    raise DataError(f"the file is not one of {', '.join(FORMATS)}: name its format with --format")


# CSV.


_COLUMNS = (
    "pair", "prompt", "answer_1", "answer_2", "labeler", "choice", "comment", "score_1", "score_2", "labeled_at", "probability",
    "stratum",
)  # fmt: skip


def _csv(pairs: Sequence[FilePair]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(_COLUMNS)
    for pair in pairs:
        shared = [pair.pair, pair.prompt, pair.answer_1, pair.answer_2]
        for label in pair.labels or (None,):
            given: list[Any] = [""] * 6
            if label is not None:
                choice = {1.0: "1", 0.0: "2"}.get(label.first if label.first is not None else 0.5, "0")
                given = [label.labeler or "", choice, label.comment or "", *label.scores, label.at or ""]
            row = [*shared, *given, pair.probability, pair.stratum]
            writer.writerow(["" if value is None else _cell(value) for value in row])
    return out.getvalue()


def _cell(value: Any) -> str:
    """A cell that a spreadsheet takes for text: a formula begins with one of these signs."""
    text = well_formed(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
    return f"'{text}" if isinstance(value, str) and text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text


def _csv_labels(text: str, labeler: str | None) -> Iterator[FileLabel]:
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns = [name.strip().lower() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        if not {"pair", "pair_id"} & set(columns) or not {"choice", "label"} & set(columns):
            raise DataError(f"the table needs the columns pair and choice; it has {', '.join(columns) or 'none'}")
        for number, row in enumerate(reader, start=2):
            values = {
                name: (value or "").strip()
                for name, value in row.items()
                if isinstance(name, str) and not isinstance(value, list)
            }
            word = values.get("choice") or values.get("label") or ""
            if not word:
                continue
            where = f"line {number}"
            by_arm = not values.get("choice")
            yield _label(
                pair=values.get("pair") or values.get("pair_id") or "",
                word=word,
                by_arm=by_arm,
                labeler=values.get("labeler") or labeler,
                comment=values.get("comment"),
                at=values.get("labeled_at"),
                scores=(_number(values.get("score_1"), where), _number(values.get("score_2"), where)),
                where=where,
            )
    except csv.Error as error:
        raise DataError(f"the file is no table: {error}") from None


def _label(
    *,
    pair: str,
    word: str,
    by_arm: bool,
    labeler: str | None,
    where: str,
    comment: str | None = None,
    at: str | None = None,
    scores: tuple[float | None, float | None] = (None, None),
) -> FileLabel:
    if not pair:
        raise DataError(f"{where}: the label names no pair")
    known = _ARMS if by_arm else _CHOICES
    preference = known.get(word.strip().lower())
    if preference is None:
        wanted = "a, b or tie" if by_arm else "1, 2 or 0 (tie)"
        raise DataError(f"{where}: {'label' if by_arm else 'choice'} = {word[:40]!r}: {wanted} is expected")
    if at:
        try:
            datetime.fromisoformat(at)
        except ValueError:
            raise DataError(f"{where}: labeled_at = {at[:40]!r} is no time (ISO 8601)") from None
    return FileLabel(
        pair=pair,
        labeler=labeler,
        first=None if by_arm else preference,
        treatment=preference if by_arm else None,
        comment=comment or None,
        at=at or None,
        scores=scores,
    )


def _number(text: str | None, where: str) -> float | None:
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{where}: a score of {text[:40]!r} is no number") from None


# Label Studio.


def _task(pair: FilePair) -> dict[str, Any]:
    data = {"pair": pair.pair, "prompt": pair.prompt, "answer1": pair.answer_1, "answer2": pair.answer_2}
    return {"data": data, "annotations": [_annotation(label) for label in pair.labels]}


def _annotation(label: FileLabel) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    if label.first != 0.5:
        results.append(
            {
                "from_name": _QUESTION,
                "to_name": "answer1,answer2",
                "type": "pairwise",
                "value": {"selected": "left" if label.first == 1.0 else "right"},
            }
        )
    if label.comment:
        value = {"text": [label.comment]}
        results.append({"from_name": _COMMENT, "to_name": "prompt", "type": "textarea", "value": value})
    found: dict[str, Any] = {"result": results, "was_cancelled": False, "evalpipe_labeler": label.labeler}
    return found if label.at is None else {**found, "created_at": label.at}


def _task_labels(task: Mapping[str, Any], place: int, labeler: str | None) -> Iterator[FileLabel]:
    data = task.get("data")
    pair = data.get("pair") or data.get("pair_id") if isinstance(data, dict) else None
    annotations = task.get("annotations", task.get("completions"))
    for annotation in annotations if isinstance(annotations, list) else []:
        where = f"task {place}"
        if not isinstance(annotation, dict):
            raise DataError(f"{where}: an annotation is no object")
        if annotation.get("was_cancelled") or annotation.get("skipped"):
            continue
        results = [one for one in annotation.get("result") or [] if isinstance(one, dict)]
        chosen = next((one for one in results if one.get("type") in {"pairwise", "choices"}), None)
        yield _label(
            pair=str(pair or ""),
            word=_selected(chosen, where),
            by_arm=False,
            labeler=annotation.get("evalpipe_labeler") or _completed_by(annotation.get("completed_by")) or labeler,
            comment=next((_text_of(one) for one in results if one.get("type") == "textarea"), None),
            at=annotation.get("created_at"),
            where=where,
        )


def _selected(result: Mapping[str, Any] | None, where: str) -> str:
    if result is None:
        return "tie"
    value = result.get("value")
    found = (value.get("selected") or value.get("choices")) if isinstance(value, dict) else None
    word = found[0] if isinstance(found, list) and found else found
    if not isinstance(word, str):
        raise DataError(f"{where}: the value of the {result.get('type')} result names no answer")
    return word


def _completed_by(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("email") or value.get("username") or value.get("id")
    return f"label-studio:{value}" if isinstance(value, int) else value if isinstance(value, str) and value else None


def _text_of(result: Mapping[str, Any]) -> str | None:
    value = result.get("value")
    text = value.get("text") if isinstance(value, dict) else None
    return "\n".join(map(str, text)) if isinstance(text, list) else text if isinstance(text, str) else None


# Argilla.


def _record(pair: FilePair) -> dict[str, Any]:
    answers = {1.0: "answer_1", 0.0: "answer_2"}
    responses: dict[str, list[dict[str, Any]]] = {}
    for label in pair.labels:
        who = {"user_id": user_id(label.labeler or "")}
        word = answers.get(label.first if label.first is not None else 0.5, "tie")
        responses.setdefault(_QUESTION, []).append({"value": word, **who})
        if label.comment:
            responses.setdefault(_COMMENT, []).append({"value": label.comment, **who})
    return {
        "id": pair.pair,
        "fields": {"prompt": pair.prompt, "answer_1": pair.answer_1, "answer_2": pair.answer_2},
        "metadata": {},
        "suggestions": {},
        "responses": responses,
        "vectors": {},
    }


def _record_labels(
    record: Mapping[str, Any], place: int, labeler: str | None, ids: Mapping[str, str]
) -> Iterator[FileLabel]:
    where = f"record {place}"
    responses = record.get("responses")
    if not isinstance(responses, dict):
        return
    comments = {one.get("user_id"): one.get("value") for one in responses.get(_COMMENT) or [] if isinstance(one, dict)}
    for one in responses.get(_QUESTION) or []:
        if not isinstance(one, dict) or not isinstance(one.get("value"), str):
            raise DataError(f"{where}: a response of {_QUESTION} names no answer")
        if one.get("status") in {"draft", "discarded"}:
            continue
        user = one.get("user_id")
        comment = comments.get(user)
        yield _label(
            pair=str(record.get("id") or ""),
            word=one["value"],
            by_arm=False,
            labeler=ids.get(str(user)) or labeler or (f"argilla:{user}" if user else None),
            comment=comment if isinstance(comment, str) else None,
            where=where,
        )


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, dict):
        return {key: _clean(one) for key, one in value.items()}
    return [_clean(one) for one in value] if isinstance(value, list) else value
