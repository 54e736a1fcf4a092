"""judges/NAME.toml + prompts/NAME.j2 → a JudgeSpec with its fingerprint; a broken file is one line naming file and key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import jinja2
from jinja2.sandbox import SandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from evalpipe.config import Flag, Number, Whole
from evalpipe.errors import ConfigError
from evalpipe.identity import fingerprint
from evalpipe.judging.facts import FactRules
from evalpipe.judging.prompt import SCHEMA_VERSION, reply_schema
from evalpipe.models import JudgeMode
from evalpipe.providers.paths import ADDRESS, address_fault
from evalpipe.text import mistake_in_words

JUDGE_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIMENSION = r"^[A-Za-z][A-Za-z0-9_]{0,31}$"


class _JudgeFile(BaseModel):
    """The keys a judge's file may have."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mode: Literal["pairwise", "pointwise"]
    provider: Literal["anthropic", "openai", "litellm"] = "anthropic"
    model: Annotated[str, Field(min_length=1)]
    base_url: Annotated[str, Field(pattern=ADDRESS)] | None = None
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    template: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+\.j2$")]
    reasoning: Flag = True
    repeats: Annotated[Whole, Field(ge=1, le=100)] = 1
    reply: Literal["schema", "tool", "text"] = "schema"
    max_tokens: Annotated[Whole, Field(ge=16, le=64_000)] = 1024
    scale: tuple[Number, Number] = (0.0, 10.0)
    dimensions: Annotated[dict[Annotated[str, Field(pattern=_DIMENSION)], str], Field(min_length=1, max_length=20)]
    facts: tuple[Literal["context", "reference"], ...] = ()
    scoring: Literal["scores", "claims"] = "scores"
    max_context_chars: Annotated[Whole, Field(ge=200)] = 40_000
    max_request_chars: Annotated[Whole, Field(ge=200)] = 40_000
    max_response_chars: Annotated[Whole, Field(ge=200)] = 20_000
    timeout_s: Annotated[Number, Field(gt=0, le=3600)] = 120.0
    params: dict[str, Any] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeSpec:
    """One judge: the model, its prompt, and the schema of its reply.

    `system`: the rendered template. `scale`: lowest and highest score. `reply`: how the provider is made to keep to the
    schema (schema = structured output, tool = a forced strict tool, text = only asked). `params` are sent as they are, and
    nothing else is: no sampling parameter unless configured. Two specs with one fingerprint are the same judge.
    `facts`: what an answer is checked against (context, reference); an answer without it is not judged. `scoring`: scores per
    dimension, or the share of an answer's claims that the context supports. `fact_rules`: where facts are found in a request.
    """

    name: str
    mode: JudgeMode
    provider: str
    model: str
    base_url: str | None
    api_key_env: str | None
    template: str
    template_hash: str
    system: str
    reasoning: bool
    repeats: int
    reply: str
    max_tokens: int
    scale: tuple[float, float]
    dimensions: Mapping[str, str]
    max_request_chars: int
    max_response_chars: int
    timeout_s: float
    params: Mapping[str, Any] = field(default_factory=dict)
    facts: tuple[str, ...] = ()
    scoring: str = "scores"
    max_context_chars: int = 40_000
    fact_rules: FactRules = field(default_factory=FactRules, compare=False)

    schema: dict[str, Any] = field(init=False, repr=False, compare=False)
    """the JSON schema of a reply"""
    fingerprint: str = field(init=False, compare=False)
    """What makes a judgment this judge's: rubric, model, parameters, layout. Not the address it is reached at, and not how
    often it is asked. Both are made once: every call needs them."""

    @property
    def who(self) -> str:
        """In messages."""
        return f"judge {self.name!r}"

    @property
    def key_setting(self) -> str:
        """The file that names its key's environment variable."""
        return f"judges/{self.name}.toml"

    @property
    def lists_claims(self) -> bool:
        return self.scoring == "claims"

    def __post_init__(self) -> None:
        schema = reply_schema(
            self.mode, self.dimensions, reasoning=self.reasoning, scale=self.scale, lists_claims=self.lists_claims
        )
        object.__setattr__(self, "schema", schema)
        mark = fingerprint(
            {
                "version": SCHEMA_VERSION,
                "mode": self.mode,
                "model": self.model,
                "system": self.system,
                "schema": schema,
                "reply": self.reply,
                "scale": self.scale,
                "max_tokens": self.max_tokens,
                "max_chars": [self.max_request_chars, self.max_response_chars],
                "params": dict(self.params),
                # Only where they are used: what was judged before they were there keeps its judge.
                **({"facts": list(self.facts), "max_context_chars": self.max_context_chars} if self.facts else {}),
                **({"scoring": self.scoring} if self.lists_claims else {}),
            }
        )
        object.__setattr__(self, "fingerprint", mark)


def load_judge(
    name: str,
    judge_folders: Sequence[Path],
    prompt_folders: Sequence[Path],
    *,
    model: str | None = None,
    base_url: str | None = None,
    api_key_env: str | None = None,
    fact_rules: FactRules | None = None,
) -> JudgeSpec:
    """The judge `name`: the first folder that has NAME.toml wins. `model`, `base_url` and `api_key_env` replace the file's
    where they are given. `fact_rules`: where facts are found in a request. Raises ConfigError with one line."""
    path = _find(name, judge_folders)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    try:
        read = _JudgeFile.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explain(error)}") from None
    if read.scale[0] >= read.scale[1]:
        raise ConfigError(f"{path}: scale = {list(read.scale)}: the first number must be the lower one")
    reserved = {"reasoning", "winner", "response_1", "response_2", "claims"} & set(read.dimensions)
    if reserved:
        raise ConfigError(f"{path}: dimensions.{sorted(reserved)[0]}: this name is taken by the reply itself")
    _check_facts(read, path)
    text = _read_template(read.template, prompt_folders, path)
    spec = JudgeSpec(
        name=name,
        system=_render(text, read, path),
        template_hash=fingerprint(text),
        **{**read.model_dump(), "mode": JudgeMode(read.mode)},
    )
    fault = address_fault(base_url or spec.base_url or "")
    if fault is not None:
        raise ConfigError(f"judge {name!r}: base_url: {fault}")
    return replace(
        spec,
        model=model or spec.model,
        base_url=base_url or spec.base_url,
        api_key_env=api_key_env or spec.api_key_env,
        fact_rules=fact_rules or spec.fact_rules,
    )


def _check_facts(read: _JudgeFile, path: Path) -> None:
    if len(set(read.facts)) < len(read.facts):
        raise ConfigError(f"{path}: facts = {list(read.facts)}: each may be there once")
    if read.facts and read.mode != "pointwise":
        raise ConfigError(f'{path}: facts = {list(read.facts)}: only a judge with mode = "pointwise" reads facts')
    if read.scoring == "claims" and "context" not in read.facts:
        raise ConfigError(f'{path}: scoring = "claims" marks claims against the context: add facts = ["context"]')
    if read.scoring == "claims" and len(read.dimensions) != 1:
        raise ConfigError(
            f'{path}: dimensions: scoring = "claims" gives one score, so there is one dimension, not {len(read.dimensions)}'
        )


def judge_names(folders: Sequence[Path]) -> list[str]:
    """The judges that can be named, sorted."""
    return sorted(
        {path.stem for folder in folders for path in folder.glob("*.toml") if JUDGE_NAME.fullmatch(path.stem)}
    )


def _find(name: str, folders: Sequence[Path]) -> Path:
    if not JUDGE_NAME.fullmatch(name):
        raise ConfigError(f"--judge {name!r}: a judge's name is made of letters, digits, '.', '_' and '-'")
    for folder in folders:
        path = folder / f"{name}.toml"
        if path.is_file():
            return path
    known = judge_names(folders)
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    raise ConfigError(f"no judge {name!r} (judges/{name}.toml){hint} known: {', '.join(known) or 'none'}")


def _read_template(name: str, folders: Sequence[Path], judge_path: Path) -> str:
    for folder in folders:
        path = folder / name
        if path.is_file():
            try:
                return path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"cannot read {path}: {error}") from None
    raise ConfigError(f"{judge_path}: template = {name!r}: no such file in prompts/")


def _render(text: str, read: _JudgeFile, judge_path: Path) -> str:
    environment = SandboxedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    low, high = (int(bound) if bound == int(bound) else bound for bound in read.scale)
    values = {
        "dimensions": read.dimensions,
        "scale": (low, high),
        "reasoning": read.reasoning,
        "facts": read.facts,
        "scoring": read.scoring,
    }
    try:
        rendered = environment.from_string(text).render(values).strip()
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"prompts/{read.template}, line {error.lineno}: {error.message}") from None
    except jinja2.TemplateError as error:
        raise ConfigError(f"prompts/{read.template} (for {judge_path.name}): {error}") from None
    if not rendered:
        raise ConfigError(f"prompts/{read.template} (for {judge_path.name}) renders to nothing")
    return rendered


def _explain(error: ValidationError) -> str:
    return "; ".join(dict.fromkeys(_one_mistake(one) for one in error.errors(include_url=False)))


def _one_mistake(one: ErrorDetails) -> str:
    key = ".".join(str(part) for part in one["loc"] if part != "[key]")
    if one["type"] == "extra_forbidden":
        near = get_close_matches(key, list(_JudgeFile.model_fields), n=1)
        return f"unknown key {key}" + (f"; did you mean {near[0]!r}?" if near else "")
    if one["type"] == "missing":
        return f"{key} is missing"
    return f"{key} = {one['input']!r}: {mistake_in_words(one['msg'])}"
