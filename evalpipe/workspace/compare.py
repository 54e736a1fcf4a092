"""`evalpipe compare`: two files of answers (or one with both) → loaded, paired, judged, reported."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from msgspec.structs import replace as with_values

from evalpipe.config import ArmConfig, Config, ExperimentConfig, JudgeConfig
from evalpipe.errors import ConfigError, DataError, EvalpipeError
from evalpipe.identity import fingerprint
from evalpipe.judging.costs import CostEstimate
from evalpipe.judging.runner import RunSummary
from evalpipe.models import Arm, Exchange, Label
from evalpipe.providers.model_names import family, same_family
from evalpipe.store.importers.base import Imported
from evalpipe.store.importers.mapping import columns_of, listed, read_map
from evalpipe.store.load import Entry, Reading, read_source, store_rows
from evalpipe.store.load_history import loads_in
from evalpipe.text import format_counted, printable
from evalpipe.workspace.load import (
    LoadOptions,
    LoadPlan,
    Planned,
    arms_of,
    memory_of,
    only_load,
    plan_files,
    refuse_missing,
    shown_guess,
)
from evalpipe.workspace.paths import Workspace, check_writable, shipped
from evalpipe.workspace.report import WrittenReport, write_report

Output = Callable[[str], object]
Confirm = Callable[[str], bool]
SHOWN = 3
"""answers without a partner that are shown of each file"""


@dataclass(frozen=True, slots=True)
class Vendor:
    """Whose cheap model judges where its key is in the environment."""

    family: str
    provider: str
    key_env: str
    model: str
    base_url: str | None = None


VENDORS = (
    Vendor("claude", "anthropic", "ANTHROPIC_API_KEY", "claude-haiku-4-5"),
    Vendor("gpt", "openai", "OPENAI_API_KEY", "gpt-4.1-mini"),
    Vendor(
        "gemini",
        "openai",
        "GEMINI_API_KEY",
        "gemini-2.5-flash-lite",
        "https://generativelanguage.googleapis.com/v1beta/openai",
    ),
)

RATES: dict[str, Any] = {
    "requests_per_minute": 4000,
    "input_tokens_per_minute": 2_000_000,
    "output_tokens_per_minute": 400_000,
}
"""Of the judge outside of a workspace: where a key's limits are lower, the answers' headers and 429s lower these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareOptions:
    """The options of the command line."""

    name: str | None = None
    judge_model: str | None = None
    judge_base_url: str | None = None
    judge_key_env: str | None = None
    mapping: str | None = None
    arms: tuple[str, ...] = ()
    format_name: str = "auto"
    max_usd: float | None = None
    limit: int | None = None
    yes: bool = False
    show_progress: bool | None = None


@dataclass(kw_only=True, slots=True)
class Compared:
    """What a comparison came to."""

    workspace: Workspace
    experiment: str
    n_pairs: int
    summary: RunSummary
    report: WrittenReport


@dataclass(kw_only=True, slots=True)
class _Read:
    """The answers of one file, and what it held besides."""

    rows: list[Exchange] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    n_rejected: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    has_ids: bool = True
    says_arms: bool = False
    faults: list[str] = field(default_factory=list)
    mapped: set[str] = field(default_factory=set)
    """the targets of `--map` that are in the file"""
    columns: dict[str, None] = field(default_factory=dict)


def compare(
    workspace: Workspace,
    old: Path,
    new: Path | None,
    options: CompareOptions,
    *,
    output: Output,
    confirm: Confirm | None,
) -> Compared:
    """Compare two files of answers, or the two answers in one.

    Args:
        workspace: of the working directory; without a configuration the data go to ./evalpipe-NAME/.
        old: control's answers, or both.
        new: treatment's answers.
        options: those of the command line.
        output: takes the line of each step.
        confirm: asked before money is spent; None: there is no terminal.

    Raises:
        ConfigError: for files, mappings and judges that cannot be; where a confirmation is needed and there is no terminal.
        DataError: where no two answers belong together.
    """
    name = _name(old, new, options.name)
    output(f"1/4 read: {old}" + (f" (control) and {new} (treatment)" if new is not None else " (both answers)"))
    pairs, labels = _pairs_of(workspace, old, new, options, output)
    judge = _judge_of(workspace, options, pairs)
    place, experiment = _place(workspace, name, judge, pairs)
    check_writable(place.data)
    content = _content(pairs, labels)
    experiment = _fresh_name(place, experiment, content, output)
    place = _named(place, experiment)
    imported = [Imported(exchanges=[row for pair in pairs for row in pair], labels=labels)]
    with only_load(place.data):
        store_rows(place.data, experiment, f"compare-{content}", imported)
    output(f"2/4 stored {format_counted(len(pairs), 'pair')} as {experiment} in {place.data}")
    summary = _judged(place, experiment, options, output, confirm)
    output("4/4 report")
    report = write_report(place, experiment=experiment)
    return Compared(workspace=place, experiment=experiment, n_pairs=len(pairs), summary=summary, report=report)


def _name(old: Path, new: Path | None, asked: str | None) -> str:
    if asked is not None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", asked):
            raise ConfigError(
                f"--name {asked}: letters, digits, '.', '_' and '-', at most 64, not beginning with '.' or '-'"
            )
        return asked
    stems = [
        re.sub(r"[^A-Za-z0-9._-]+", "-", path.name.split(".")[0]).strip(".-") or "file"
        for path in (old, new)
        if path is not None
    ]
    return "-vs-".join(stem[:28] for stem in stems)


def _pairs_of(
    workspace: Workspace, old: Path, new: Path | None, options: CompareOptions, output: Output
) -> tuple[list[tuple[Exchange, Exchange]], list[Label]]:
    first = _read(workspace, old, options, Arm.CONTROL, output, may_lack=new is not None)
    if new is None:
        return _both_in(first, old, output), first.labels
    second = _read(workspace, new, options, Arm.TREATMENT, output, may_lack=True)
    _print_one_sided(first, second, old, new, options, output)
    for read, path in ((first, old), (second, new)):
        if read.says_arms and len({row.arm for row in read.rows}) > 1:
            raise ConfigError(
                f"{path} holds the answers of both arms already: compare it alone, `evalpipe compare {path}`"
            )
    found = pair_up(first.rows, second.rows, ids=first.has_ids and second.has_ids)
    _print_pairing(found, old, new, output)
    if not found.pairs:
        raise DataError(
            f"no answer of {old} and {new} belongs together: neither an id nor a prompt is in both; "
            'name the columns that hold them with --map "prompt=…, text=…, id=…"'
        )
    return found.pairs, []


def _print_one_sided(
    first: _Read, second: _Read, old: Path, new: Path, options: CompareOptions, output: Output
) -> None:
    """One line of what `--map` names and only one file has. Raises ConfigError for what neither has."""
    only: list[str] = []
    for target, path in read_map(options.mapping).paths.items() if options.mapping else ():
        if target not in first.mapped | second.mapped:
            raise ConfigError(
                f"--map: {target}={path} is nowhere in {old}, which has {listed(list(first.columns))}, "
                f"nor in {new}, which has {listed(list(second.columns))}"
            )
        if target not in first.mapped & second.mapped:
            note = ", so it pairs nothing" if target == "id" else ""
            only.append(f"{target} (in {old if target in first.mapped else new}{note})")
    if only:
        output(printable(f"    from one file only: {'; '.join(only)}"))


def _read(
    workspace: Workspace, path: Path, options: CompareOptions, arm: Arm, output: Output, *, may_lack: bool
) -> _Read:
    """Every answer of a file, with one line of what it is and what was left out."""
    if not path.exists():
        refuse_missing(path)
    files = (
        [path]
        if path.is_file()
        else sorted(one for one in path.rglob("*") if one.is_file() and not one.name.startswith("."))
    )
    chosen = LoadOptions(
        format_name=options.format_name,
        arm=arm.value,
        mapping=options.mapping,
        arms=options.arms,
        yes=True,
        may_lack=may_lack,
    )
    plan: LoadPlan = plan_files(workspace, [(one, path.is_dir(), "compare") for one in files], chosen)
    if not plan.sources:
        raise DataError(f"{path} holds no log: {plan.skipped_text() or 'it is empty'}")
    memory = memory_of(plan)
    read = _Read()
    for planned in plan.sources:
        if planned.guess is not None:
            for line in shown_guess(planned, workspace):
                output(printable(line))
        reading = Reading(arm=arm, arms=arms_of(planned, workspace), memory=memory)
        importer = planned.examined.importer
        read.says_arms = read.says_arms or (importer is not None and importer.tells_arms)
        if importer is not None and importer.mapped is not None:
            read.mapped |= importer.mapped.paths.keys()
        read.columns |= dict.fromkeys(columns_of(planned.examined.sample[:20]))
        for entry in read_source(planned.examined, reading):
            _take(read, entry)
        read.faults += planned.examined.source.faults
        _print_source(planned, read, output)
    if not read.rows:
        reasons = (
            "; ".join(f"{reason} {n:,}" for reason, n in {**read.reasons, **read.left_out}.items()) or "nothing in it"
        )
        raise DataError(f"{path} holds no answer: {reasons}")
    return read


def _take(read: _Read, entry: Entry) -> None:
    reasons = [entry.reason] if entry.reason is not None else []
    if entry.imported is not None:
        imported = entry.imported
        read.rows += imported.exchanges
        read.labels += imported.labels
        read.has_ids = read.has_ids and not imported.derived_ids
        read.says_arms = read.says_arms or bool(imported.variants)
        for kind in imported.left_out:
            read.left_out[kind] = read.left_out.get(kind, 0) + 1
        reasons += imported.rejected
    for reason in reasons:
        read.n_rejected += 1
        read.reasons[reason] = read.reasons.get(reason, 0) + 1


def _print_source(planned: Planned, read: _Read, output: Output) -> None:
    importer = planned.examined.importer
    form = (
        importer.name
        if importer is not None and planned.guess is None
        else "columns as above"
        if planned.guess
        else "map"
    )
    output(
        f"    {planned.examined.source.name}: {planned.examined.source.kind}, {form}; {format_counted(len(read.rows), 'answer')}"
    )
    for kinds, word in ((read.left_out, "left out"), (read.reasons, "rejected")):
        if kinds:
            output(printable(f"    {word}: {'; '.join(f'{kind} {n:,}' for kind, n in list(kinds.items())[:4])}"))
    for fault in read.faults:
        output(f"    {fault}")


def _both_in(read: _Read, path: Path, output: Output) -> list[tuple[Exchange, Exchange]]:
    """The pairs of a file that holds both answers: under one id, or (one answer a row) by their prompts."""
    old = [row for row in read.rows if row.arm is Arm.CONTROL]
    new = [row for row in read.rows if row.arm is Arm.TREATMENT]
    if not old or not new:
        raise ConfigError(
            f"{path} holds one answer to each prompt: give the file of the other answers too, or name both columns with "
            '--map "prompt=…, text_a=OLD, text_b=NEW" (or text=…, arm=COLUMN)'
        )
    found = pair_up(old, new, ids=True)
    _print_pairing(found, path, path, output)
    if not found.pairs:
        raise DataError(f"{path}: no prompt was answered by both arms, so there is nothing to compare pair by pair")
    return found.pairs


def _print_pairing(found: Pairing, old: Path, new: Path, output: Output) -> None:
    by = ", ".join(f"{n:,} by {how}" for how, n in found.by.items()) or "none"
    output(f"    {format_counted(len(found.pairs), 'pair')} ({by})")
    if found.n_other_prompts:
        have = "has a prompt that differs" if found.n_other_prompts == 1 else "have prompts that differ"
        output(f"    {found.n_other_prompts:,} of them {have} between the files: control's is shown to the judge")
    for alone, path, arm in ((found.old_alone, old, "control"), (found.new_alone, new, "treatment")):
        if alone:
            have, such_as = (
                ("has no partner and is", "") if len(alone) == 1 else ("have no partner and are", ", such as")
            )
            output(f"    {format_counted(len(alone), 'answer')} of {path} ({arm}) {have} left out{such_as}:")
            for row in alone[:SHOWN]:
                output(printable(f"      {row.request_id[:40]}: {_short(row.prompt or row.text or '')}"))


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 90 else f"{flat[:89]}…"


def _models(pairs: Sequence[tuple[Exchange, Exchange]]) -> tuple[str | None, str | None]:
    old = next((row.model or row.model_requested for row, _ in pairs if row.model or row.model_requested), None)
    new = next((row.model or row.model_requested for _, row in pairs if row.model or row.model_requested), None)
    return old, new


@dataclass(frozen=True, slots=True)
class _Judge:
    """Who judges; None in a field: as configured in the workspace."""

    vendor: Vendor | None
    model: str | None
    base_url: str | None
    key_env: str | None


def _judge_of(workspace: Workspace, options: CompareOptions, pairs: Sequence[tuple[Exchange, Exchange]]) -> _Judge:
    """The judge that was named, else the workspace's, else the cheap model of a vendor whose key is there."""
    if workspace.config is not None:
        return _Judge(None, options.judge_model, options.judge_base_url, options.judge_key_env)
    if options.judge_model is not None:
        kind = family(options.judge_model)
        vendor = next((one for one in VENDORS if one.family == kind), VENDORS[1])
        known = kind in {one.family for one in VENDORS}
        if not known and options.judge_base_url is None:
            raise ConfigError(
                f"--judge-model {options.judge_model}: whose model is it? Give its server with --judge-base-url URL"
            )
        key = options.judge_key_env or vendor.key_env
        from evalpipe.calls.client import is_local

        if not os.environ.get(key) and not is_local(options.judge_base_url):
            raise ConfigError(
                f"the judge {options.judge_model} needs a key: set {key} in the environment, "
                "or name another variable with --judge-key-env"
            )
        return _Judge(vendor, options.judge_model, options.judge_base_url or vendor.base_url, key)
    there = [one for one in VENDORS if os.environ.get(one.key_env)]
    if not there:
        names = ", ".join(one.key_env for one in VENDORS)
        raise ConfigError(
            f"no judge: set one of {names} in the environment, or name a judge with --judge-model (and --judge-base-url)"
        )
    arms = _models(pairs)
    vendor = next((one for one in there if not any(same_family(one.model, arm) for arm in arms)), there[0])
    return _Judge(vendor, vendor.model, options.judge_base_url or vendor.base_url, vendor.key_env)


def _place(
    workspace: Workspace, name: str, judge: _Judge, pairs: Sequence[tuple[Exchange, Exchange]]
) -> tuple[Workspace, str]:
    """(the workspace of the data, the experiment). Outside of a workspace: ./evalpipe-NAME/, with a judge's file of its
    own."""
    if workspace.config is not None:
        config = workspace.config
        changed = config.judge.model_copy(
            update={
                key: value
                for key, value in (("model", judge.model), ("base_url", judge.base_url), ("api_key_env", judge.key_env))
                if value
            }
        )
        return replace(workspace, config=config.model_copy(update={"judge": changed})), name
    root = (Path.cwd() / f"evalpipe-{name}").resolve()
    root.mkdir(parents=True, exist_ok=True)
    _write_judge(root, judge)
    data = workspace.data if workspace.data != Path.cwd().resolve() / "data" else root / "data"
    old, new = _models(pairs)
    arms = (
        {"control": ArmConfig(provider="openai", model=old), "treatment": ArmConfig(provider="openai", model=new)}
        if old and new
        else None
    )
    document: dict[str, Any] = {"experiment": ExperimentConfig(name=name), "judge": JudgeConfig(**RATES)}
    if arms is not None:
        document["arms"] = arms
    return Workspace(root=root, data=data, config=Config(**document)), name


def _write_judge(root: Path, judge: _Judge) -> None:
    """The shipped pairwise judge with this model in it, where `evalpipe judge` and `evalpipe report` find it again."""
    from evalpipe.files import write_atomically

    assert judge.vendor is not None and judge.model is not None
    text = (shipped("judges") / "pairwise.toml").read_text("utf-8")
    text = re.sub(r'(?m)^provider = "[^"]*"', f'provider = "{judge.vendor.provider}"', text)
    text = re.sub(r'(?m)^model = "[^"]*"', f"model = {_toml(judge.model)}", text)
    text = re.sub(r'(?m)^api_key_env = "[^"]*"', f"api_key_env = {_toml(judge.key_env or '')}", text)
    if judge.base_url:
        text = text.replace("api_key_env =", f"base_url = {_toml(judge.base_url)}\napi_key_env =", 1)
    (root / "judges").mkdir(exist_ok=True)
    write_atomically(root / "judges" / "pairwise.toml", text.encode())


def _toml(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _content(pairs: Sequence[tuple[Exchange, Exchange]], labels: Sequence[Label]) -> str:
    """A fingerprint of everything that is compared: the same files again are the same comparison."""
    return fingerprint(
        [[[row.request_id, row.prompt, row.text, row.outcome, row.unit_id] for row in pair] for pair in pairs]
        + [[label.request_id, label.preference] for label in labels]
    )


def _fresh_name(place: Workspace, name: str, content: str, output: Output) -> str:
    """The name under which these answers are compared: a decision once recorded belongs to the answers it was made
    on."""
    known: dict[str, set[str]] = {}
    for load in loads_in(place.data):
        known.setdefault(load.experiment, set()).add(Path(load.source).name)
    taken = {*known, *place.loaded_experiments()}
    wanted, number = name, 1
    while wanted in taken and f"compare-{content}" not in known.get(wanted, set()):
        number += 1
        wanted = f"{name[:60]}-{number}"
    if wanted != name:
        output(f"    {name} holds other answers (files of before): these are {wanted}")
    return wanted


def _named(place: Workspace, experiment: str) -> Workspace:
    config = place.config
    assert config is not None
    named = config.experiment.model_copy(update={"name": experiment, "mode": "shadow"})
    return replace(place, config=config.model_copy(update={"experiment": named}))


def _judged(
    place: Workspace, experiment: str, options: CompareOptions, output: Output, confirm: Confirm | None
) -> RunSummary:
    from evalpipe.workspace import judge as workspace_judge
    from evalpipe.workspace.judge_setup import JudgeOptions, load_specs

    chosen = JudgeOptions(
        max_usd=options.max_usd, limit=options.limit, experiment=experiment, show_progress=options.show_progress
    )
    spec = load_specs(place)[0]
    estimate = workspace_judge.estimate_judging(place, chosen)[0]
    from evalpipe.calls.client import address_of, api_key

    output(f"3/4 judge: {spec.model} at {address_of(spec)}" + (f", key {spec.api_key_env}" if spec.api_key_env else ""))
    api_key(spec)
    output(f"    {_cost(estimate)}")
    for arm, model in zip(("control", "treatment"), _arm_models(place), strict=True):
        if model and same_family(spec.model, model):
            output(
                f"    it is of the family of {arm}'s {model}: judges prefer their own kin; --judge-model names another"
            )
    if estimate.calls and not options.yes:
        if confirm is None:
            raise ConfigError(
                f"judging costs money ({_cost(estimate)}): add --yes (and --max-usd USD as a cap); nothing was sent"
            )
        if not confirm("Send them?"):
            raise EvalpipeError("nothing was sent; the answers stay loaded: run the same command again to go on")
    return workspace_judge.judge(place, chosen)[0]


def _arm_models(place: Workspace) -> tuple[str | None, str | None]:
    arms = place.config.arms if place.config is not None else None
    return (None, None) if arms is None else (arms.control.model, arms.treatment.model if arms.treatment else None)


def _cost(estimate: CostEstimate) -> str:
    if not estimate.calls:
        return "nothing to ask: every pair is judged already, or its answers are identical"
    money = f"about ${estimate.usd:,.4f}" if estimate.usd is not None else "at a price that is not known"
    more = f", {estimate.known:,} known already" if estimate.known else ""
    calls, units = format_counted(estimate.calls, "call"), format_counted(estimate.units, "pair")
    return f"{calls} for {units}{more}, {money}"


# Two lists of answers → pairs: by id, else by equal prompt. Pure.


_LAST_USER = re.compile(r"(?:\A|\n\n)\[user\]\n((?:(?!\n\n\[(?:user|assistant|system|tool)\]\n).)*)\Z", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairing:
    """`pairs`: (control's, treatment's) rows under one id; `by`: how many were found by "id", "prompt" and "last message";
    `old_alone`, `new_alone`: rows without a partner."""

    pairs: list[tuple[Exchange, Exchange]]
    by: dict[str, int]
    old_alone: list[Exchange]
    new_alone: list[Exchange]
    n_other_prompts: int = 0
    """pairs by id whose prompts differ"""


def pair_up(old: Sequence[Exchange], new: Sequence[Exchange], *, ids: bool = True) -> Pairing:
    """Pair the answers of two files. `ids`: both files have ids of their own. Ids whose prompts differ more often than not are
    row numbers, and are ignored. Repeated ids and prompts pair in order."""
    pairs: list[tuple[Exchange, Exchange]] = []
    by: dict[str, int] = {}
    left: Sequence[Exchange] = old
    right: Sequence[Exchange] = new
    n_other = 0
    if ids:
        found, rest_left, rest_right = _matched(left, right, lambda row: row.request_id)
        with_prompts = [(a, b) for a, b in found if a.prompt is not None and b.prompt is not None]
        n_other = sum(normal_prompt(a.prompt) != normal_prompt(b.prompt) for a, b in with_prompts)
        if found and (not with_prompts or 2 * n_other <= len(with_prompts)):
            pairs, left, right = found, rest_left, rest_right
            by["id"] = len(found)
        else:
            n_other = 0
    for name, key in (("prompt", _by_prompt), ("last message", _by_last_message)):
        found, left, right = _matched(left, right, key)
        if found:
            by[name] = len(found)
            pairs = [*pairs, *found]
    return Pairing(
        pairs=_under_one_id(pairs), by=by, old_alone=list(left), new_alone=list(right), n_other_prompts=n_other
    )


def normal_prompt(prompt: str | None) -> str | None:
    """The prompt without what makes no difference: blanks, case, forms of the same letters; None for an empty one."""
    if prompt is None:
        return None
    return " ".join(unicodedata.normalize("NFKC", prompt).split()).casefold() or None


def _by_prompt(row: Exchange) -> str | None:
    return normal_prompt(row.prompt)


def _by_last_message(row: Exchange) -> str | None:
    """The last message of the user alone: one file may hold the system text, the other not."""
    if row.prompt is None:
        return None
    found = _LAST_USER.search(row.prompt)
    return normal_prompt(found[1] if found else row.prompt)


def _matched(
    left: Sequence[Exchange], right: Sequence[Exchange], key: Callable[[Exchange], str | None]
) -> tuple[list[tuple[Exchange, Exchange]], list[Exchange], list[Exchange]]:
    """(pairs of equal keys in order, what is left of each side)."""
    waiting: dict[str, list[Exchange]] = defaultdict(list)
    without: list[Exchange] = []
    for row in reversed(right):
        name = key(row)
        if name is None:
            without.append(row)
        else:
            waiting[name].append(row)
    pairs: list[tuple[Exchange, Exchange]] = []
    alone: list[Exchange] = []
    for row in left:
        name = key(row)
        partners = waiting.get(name) if name is not None else None
        if partners:
            pairs.append((row, partners.pop()))
        else:
            alone.append(row)
    kept = {id(row) for rows in waiting.values() for row in rows} | {id(row) for row in without}
    return pairs, alone, [row for row in right if id(row) in kept]


def _under_one_id(pairs: Sequence[tuple[Exchange, Exchange]]) -> list[tuple[Exchange, Exchange]]:
    """Both rows of a pair under control's id, with the fields that only one of them has of the request."""
    seen: dict[str, int] = defaultdict(int)
    found = []
    for old, new in pairs:
        name = old.request_id or fingerprint(old.prompt or "", length=32)
        seen[name] += 1
        if seen[name] > 1:
            name = f"{name}-{seen[name]}"
        asked = old if old.prompt is not None else new
        shared = {
            "request_id": name,
            "unit_id": old.unit_id or new.unit_id,
            "conversation_id": old.conversation_id or new.conversation_id,
            "started_at": new.started_at if old.started_at.year <= 1970 < new.started_at.year else old.started_at,
            "prompt": asked.prompt,
            "turn": asked.turn,
            "step": asked.step,
        }
        control, treatment = (
            with_values(
                one,
                arm=arm,
                **shared,
                request=one.request or other.request,
                reference=one.reference or other.reference,
            )
            for one, other, arm in ((old, new, Arm.CONTROL), (new, old, Arm.TREATMENT))
        )
        found.append((control, treatment))
    return found
