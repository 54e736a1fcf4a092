"""evalpipe.toml → a frozen `Config`, checked: every mistake is one line with the key, the value and what is allowed."""

from __future__ import annotations

import difflib
import itertools
import os
import re
import tomllib
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from evalpipe.credentials import KEY_SHAPES, is_credential_name, is_variable_name, shown_url
from evalpipe.errors import ConfigError
from evalpipe.identity import DEFAULT_SOURCES, read_source
from evalpipe.providers.paths import ADDRESS, address_fault
from evalpipe.text import mistake_in_words, place_in_toml

CONFIG_FILE = "evalpipe.toml"

# A text or a boolean in place of a number is a mistake (`max_usd = "5"`); a whole number stands for any number.
Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Flag = Annotated[bool, Strict()]
Percent = Annotated[Number, Field(ge=0, le=100)]
Share = Annotated[Number, Field(ge=0, le=1)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Redaction = str


def _read_variable_name(value: Any) -> Any:
    if isinstance(value, str) and not is_variable_name(value):
        raise ValueError(
            "the name of an environment variable is expected, never a key; export the key, and name it here"
        )
    return value


VariableName = Annotated[str, BeforeValidator(_read_variable_name)]
HOST = r"(?:[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?"
"""pattern of a host name or address, with or without a port"""


def _without_secrets(base_url: str) -> str:
    fault = address_fault(base_url)
    if fault is not None:
        raise ValueError(fault)
    return base_url


BaseUrl = Annotated[str, Field(pattern=ADDRESS), AfterValidator(_without_secrets)]
NAMED_REDACTIONS = ("email", "phone", "card", "api_key")

_IS_THE_REQUEST = "it is the request itself"
_IS_ITS_CONTEXT = "without it the request would be another one; requests that need it are not copied"
NEVER_DROPPED = {
    "model": "set the arm's model instead",
    "messages": _IS_THE_REQUEST,
    "input": _IS_THE_REQUEST,
    "stream": "both arms must answer in the same way",
    "store": "store = false keeps copies from being stored",
    "previous_response_id": _IS_ITS_CONTEXT,
    "conversation": _IS_ITS_CONTEXT,
    "thread": _IS_ITS_CONTEXT,
}
"""request fields no arm can do without, and why"""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class ExperimentConfig(_Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    mode: Literal["shadow", "ab", "canary"] = "shadow"
    treatment_percent: Percent = 10.0
    salt: str = ""
    assignment: Literal["sha256", "md5-100"] = "sha256"
    """md5-100: MD5 of "{name}:{unit}" modulo 100, for users whom code of your own has assigned so"""
    unit: tuple[str, ...] = DEFAULT_SOURCES
    keep_days: Annotated[Whole, Field(ge=1)] | None = None
    control_from: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None
    """the experiment whose control this candidate is compared with"""
    question: Annotated[str, Field(max_length=300)] | None = None
    """what is to be decided, as the first line of the report"""
    owner: Annotated[str, Field(max_length=100)] | None = None
    link: Annotated[str, Field(pattern=r"^https?://[^\s<>\"]+$", max_length=500)] | None = None
    requests_per_month: Annotated[Number, Field(gt=0)] | None = None
    """for dollars a month in the report; without it: the traffic of the log"""

    @model_validator(mode="after")
    def _from_another(self) -> ExperimentConfig:
        if self.control_from is not None and self.control_from == self.name:
            raise ValueError("control_from is the experiment itself: name another, or leave it out")
        if self.control_from is not None and self.mode != "shadow":
            raise ValueError(
                f"control_from pairs requests with those of another experiment: it needs mode = 'shadow', not {self.mode!r}"
            )
        return self

    @model_validator(mode="after")
    def _recipe_has_no_salt(self) -> ExperimentConfig:
        if self.assignment == "md5-100" and self.salt:
            raise ValueError("assignment = 'md5-100' draws by the experiment's name: leave salt out")
        if self.assignment == "md5-100" and self.treatment_percent % 1:
            raise ValueError(
                f"assignment = 'md5-100' takes whole percentages only: treatment_percent = {self.treatment_percent:g}"
            )
        return self

    @field_validator("name", "control_from")
    @classmethod
    def _names_files(cls, name: str | None) -> str | None:
        if name is not None and name[0] in ".-":
            raise ValueError(f"must not begin with {name[0]!r}: files are named after it")
        return name

    @field_validator("unit")
    @classmethod
    def _unit_sources(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        for source in sources:
            read_source(source)
        return sources

    @property
    def effective_salt(self) -> str:
        return self.salt or self.name


class ArmConfig(_Section):
    provider: Literal["openai", "anthropic", "litellm"]
    base_url: BaseUrl | None = None
    model: str | None = None
    rewrite: Flag = False
    api_key_env: VariableName | None = None
    system_prompt_file: str | None = None
    params: dict[str, Any] = {}
    drop: tuple[str, ...] = ()
    """request fields the arm's server does not accept: paths of keys with dots between, through lists"""
    infrastructure_usd_per_request: NonNegative = 0.0

    @field_validator("drop", mode="before")
    @classmethod
    def _droppable(cls, paths: Any) -> Any:
        for path in paths if isinstance(paths, list | tuple) else ():
            if not isinstance(path, str) or not re.fullmatch(r"[^.\s]+(\.[^.\s]+)*", path):
                raise ValueError(
                    f"{path!r} is no field: give a name such as 'top_k', or a path such as 'messages.name'"
                )
            if path in NEVER_DROPPED:
                raise ValueError(f"{path!r} cannot be dropped: {NEVER_DROPPED[path]}")
        return paths

    @model_validator(mode="after")
    def _params_are_sent(self) -> ArmConfig:
        both = sorted(set(self.drop) & set(self.params))
        if both:
            raise ValueError(
                f"{both[0]!r} is in params and in drop: params are always sent, so take it out of one of them"
            )
        return self

    @property
    def effective_base_url(self) -> str:
        defaults = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}
        url = self.base_url or defaults.get(self.provider)
        if url is None:
            raise ConfigError(
                "arms: provider = 'litellm' has no default base_url; set base_url, or leave it to the library"
            )
        return url


class ArmsConfig(_Section):
    control: ArmConfig
    treatment: ArmConfig | None = None


class CollectorConfig(_Section):
    host: str = "127.0.0.1"
    port: Annotated[Whole, Field(ge=0, le=65535)] = 8400
    workers: Annotated[Whole, Field(ge=1, le=256)] = 1
    sample_percent: Percent = 100.0
    connect_timeout_s: Positive = 10.0
    idle_timeout_s: Positive = 120.0
    timeout_s: Positive = 600.0
    shadow_timeout_s: Positive = 120.0
    fsync_interval_s: Positive = 1.0
    hash_units: Flag = True
    stream_usage: Literal["as_is", "inject"] = "as_is"
    shadow_concurrency: Annotated[Whole, Field(ge=1, le=10_000)] = 64
    shadow_budget_usd: NonNegative | None = None
    responses_may_continue: Flag = True
    """ab, canary: a stored response may be gone on with by its id, so a treatment of the other dialect serves none"""
    redact: tuple[Redaction, ...] = ()
    client_token_env: VariableName = "EVALPIPE_TOKEN"
    replica: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None
    """this collector's name among those of the experiment; None: the host's"""
    allowed_hosts: tuple[str, ...] = ()
    """names other than loopback's that the collector is asked by, where no client token protects it"""
    allowed_origins: tuple[str, ...] = ()
    """web pages other than loopback's that may use it then"""

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not re.fullmatch(HOST, host, re.IGNORECASE):
                raise ValueError(f"{host!r} is no host name such as 'collector.internal' or 'collector.internal:8400'")
        return tuple(host.lower() for host in hosts)

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not re.fullmatch(rf"[a-z][a-z0-9+.-]*://{HOST}", origin, re.IGNORECASE):
                raise ValueError(f"{origin!r} is no origin such as 'https://app.example' or 'http://app.example:3000'")
        return tuple(origin.lower() for origin in origins)

    @field_validator("redact")
    @classmethod
    def _redactions(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            if pattern in NAMED_REDACTIONS:
                continue
            if not pattern.startswith("regex:"):
                allowed = ", ".join(NAMED_REDACTIONS)
                raise ValueError(f"{pattern!r} is not one of {allowed}, and no 'regex:PATTERN'")
            try:
                re.compile(pattern.removeprefix("regex:"))
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return patterns


class JudgeContextConfig(_Section):
    """Where a request holds what answers are checked against: for judges with `facts`. An import's own columns go first."""

    path: Annotated[str, Field(min_length=1)] | None = None
    """JSON path of the context in the request's body, such as metadata.context or messages[0].content"""
    reference: Annotated[str, Field(min_length=1)] | None = None
    """JSON path of the reference answer"""
    tool_results: Flag = True
    """the results of tools in the request are context"""
    documents: Flag = True
    """documents and search results in the request are context"""


class JudgeConfig(_Section):
    name: Annotated[
        tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v), Field(min_length=1)
    ] = ("pairwise",)
    model: str | None = None
    base_url: str | None = None
    api_key_env: VariableName | None = None
    orders: Literal["both", "calibrated", "balanced"] = "both"
    concurrency: Annotated[Whole, Field(ge=1, le=1000)] = 16
    requests_per_minute: Positive = 1000
    input_tokens_per_minute: Positive = 400_000
    output_tokens_per_minute: Positive = 80_000
    max_usd: NonNegative | None = None
    max_usd_per_day: NonNegative | None = None
    """of each judge, from midnight to midnight UTC"""
    pairs_per_unit: Annotated[Whole, Field(ge=0)] = 3
    """at most so many pairs of a user are judged and counted; 0 = all"""
    max_attempts: Annotated[Whole, Field(ge=1, le=100)] = 3
    """answers without a verdict that a question is paid for, over all runs; then it is given up and reported"""
    later_turns_percent: Annotated[Number, Field(ge=0, le=90)] = 20.0
    """share of the judge's plan spent on later turns of shadowed conversations, where first turns are the goal"""
    context: JudgeContextConfig = JudgeContextConfig()


def _read_margin(value: Any) -> Any:
    """ "10%" → Margin(0.1, relative); a number → an absolute margin in the metric's unit."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*%\s*", value)
        if not match:
            raise ValueError("a margin is a number in the metric's unit, or a percentage such as '10%'")
        return {"value": float(match.group(1)) / 100, "relative": True}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"value": float(value), "relative": False}
    return value


class Margin(_Section):
    """The largest acceptable loss: in the metric's unit, or (relative) as a share of control's value."""

    value: NonNegative
    relative: Flag


class MetricDecisionConfig(_Section):
    role: Literal["primary", "benefit", "guardrail", "diagnostic"] | None = None
    margin: Annotated[Margin, BeforeValidator(_read_margin)] | None = None
    weight: NonNegative = 1.0


class ReplayConfig(_Section):
    """`evalpipe replay`: the limits of each arm, and the cap over all its runs."""

    concurrency: Annotated[Whole, Field(ge=1, le=1000)] = 16
    requests_per_minute: Positive = 1000
    input_tokens_per_minute: Positive = 400_000
    output_tokens_per_minute: Positive = 80_000
    max_usd: NonNegative | None = None


class ClusterConfig(_Section):
    """`--ray`: the Ray cluster whose nodes make the calls of `evalpipe judge` and `evalpipe replay`, read for `evalpipe load`,
    and read and sum for `evalpipe report`."""

    address: str | None = None
    """host:port of a node; auto: the cluster this machine is part of; local: one on this machine for the run. None: RAY_ADDRESS,
    else auto where there is one, else local"""
    shards: Annotated[Whole, Field(ge=0, le=1000)] = 0
    """processes that make calls; 0 = one for each node"""
    cpus_per_shard: Positive = 1.0
    """CPUs that Ray sets aside for each, and for each task of a load or report; the database of a report's has as many threads"""
    concurrency_per_shard: Annotated[Whole, Field(ge=0, le=1000)] = 0
    """calls of a shard in flight; 0 = `concurrency` of [judge] or [replay] holds over the whole cluster"""
    start_timeout_s: Positive = 120.0
    """so long is waited for the first shard, and for another one where all are lost"""


class DecisionConfig(_Section):
    confidence_level: Annotated[Number, Field(gt=0.5, lt=1)] = 0.95
    looks: Literal["anytime", "fixed"] | tuple[date, ...] = "anytime"
    policy: Literal["superiority", "noninferiority", "utility"] = "superiority"
    primary: tuple[str, ...] | None = None
    min_effect_of_interest: NonNegative = 0.0
    max_requests: Annotated[Whole, Field(ge=0)] = 0
    labels: Literal["auto", "off", "required"] = "auto"
    """whether the win rate corrected by people's labels decides in place of the judge's own: from 50 labelled pairs on, never,
    or at once"""
    turns: Literal["first", "all"] = "first"
    """which turns of a shadowed conversation the win rate is about; ab and canary always count all"""
    metrics: dict[str, MetricDecisionConfig] = {}


class StageConfig(_Section):
    percentage: Annotated[Number, Field(gt=0, le=100)]
    duration_hours: NonNegative = 0.0
    auto_advance: Flag = False


class CanaryConfig(_Section):
    stages: tuple[StageConfig, ...] = (
        StageConfig(percentage=1, duration_hours=2, auto_advance=True),
        StageConfig(percentage=5, duration_hours=4, auto_advance=True),
        StageConfig(percentage=10, duration_hours=8),
        StageConfig(percentage=25, duration_hours=24),
        StageConfig(percentage=50, duration_hours=48),
        StageConfig(percentage=100),
    )
    guardrails: dict[str, Positive] = {"error_rate": 0.02, "p99_latency_ms": 5000.0}
    min_requests: Annotated[Whole, Field(ge=0)] = 50
    evaluate_every_s: Positive = 10.0
    state_timeout_s: Positive = 60.0
    """a replica that has not seen the shared state for so long serves the last stage known to be safe"""
    shadow_percent: Percent = 0.0

    @field_validator("stages")
    @classmethod
    def _rising(cls, stages: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
        shares = [stage.percentage for stage in stages]
        if not shares or any(later <= earlier for earlier, later in itertools.pairwise(shares)):
            raise ValueError(f"stages must rise strictly in percentage, got {shares}")
        return stages


class ReportConfig(_Section):
    keep: Annotated[Whole, Field(ge=0)] = 365
    """days that looks are kept in reports/NAME; 0 = no limit"""


class CompactConfig(_Section):
    """How small stored files are merged."""

    after_load: Flag = True
    """`evalpipe load` merges small files by itself"""
    min_files: Annotated[Whole, Field(ge=2)] = 32
    """so many small files of one day (or of judgments, labels, ratings) are merged by `evalpipe load`"""
    grace_minutes: Annotated[Number, Field(ge=0, le=525_600)] = 60.0
    """how long merged files are kept for readers that began before; another program that reads the folder itself counts
    their rows twice until then"""


class TelemetryConfig(_Section):
    names: Literal["evalpipe", "otel"] = "evalpipe"


class AlertsConfig(_Section):
    """Messages of `evalpipe run` and `evalpipe collect` to a webhook."""

    webhook: Annotated[str, Field(pattern=r"^[a-z][a-z0-9+]*://\S+$")] | None = None
    webhook_env: VariableName | None = None
    """the environment variable that holds the address, where it is a secret (Slack's are); it goes before `webhook`"""
    form: Literal["json", "slack", "apprise"] = "json"
    """`apprise`: the address is one of Apprise's (mailto://, tgram://, …), which sends (pip install 'evalpipe[apprise]')"""
    on: tuple[
        Literal[
            "decision_changed",
            "setup_fault",
            "copies_failing",
            "budget_used_up",
            "guardrail_breached",
            "nothing_collected",
            "run_failed",
        ],
        ...,
    ] = (
        "decision_changed",
        "setup_fault",
        "copies_failing",
        "budget_used_up",
        "guardrail_breached",
        "nothing_collected",
        "run_failed",
    )
    nothing_for_minutes: Positive = 180.0
    """so long without a new request is an alert (`nothing_collected`)"""

    @model_validator(mode="after")
    def _address_fits_the_form(self) -> AlertsConfig:
        scheme = (self.webhook or "https").partition("://")[0]
        if self.form != "apprise" and scheme not in {"http", "https"}:
            raise ValueError(
                f'webhook begins with {scheme}://: form = "{self.form}" sends to http and https addresses only; '
                'form = "apprise" sends to others'
            )
        return self


class CustomMetricConfig(_Section):
    sql: str | None = None
    function: str | None = None
    """ "package.module:name": a function of a pandas frame of exchanges → a series of values"""
    direction: Literal["lower", "higher"] = "higher"
    unit: str = ""
    label: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> CustomMetricConfig:
        if (self.sql is None) == (self.function is None):
            raise ValueError('give either sql = "…" or function = "module:name"')
        return self


class PriceConfig(_Section):
    """USD per million tokens; `_per_1000`: USD per 1,000 calls of a tool the provider runs."""

    input: NonNegative
    output: NonNegative
    cached_input: NonNegative | None = None
    cache_write: NonNegative | None = None
    cache_write_1h: NonNegative | None = None
    cache_write_12h: NonNegative | None = None
    audio_input: NonNegative | None = None
    audio_output: NonNegative | None = None
    image_input: NonNegative | None = None
    image_output: NonNegative | None = None
    web_search_per_1000: NonNegative | None = None
    file_search_per_1000: NonNegative | None = None
    code_interpreter_per_1000: NonNegative | None = None
    tiers: dict[str, NonNegative] = {}
    """the provider's word for a way of serving → its share of the token prices"""


class SourceConfig(_Section):
    """How files of one source are read by `evalpipe load`: by a format, or by a mapping of their columns."""

    files: str | None = None
    """pattern of file names it is used for, such as "support-*.csv"; without one: by `load --source NAME`"""
    format: str = "auto"
    map: str | dict[str, str] | None = None
    """ "prompt=question, text=answer", or a table of the same"""
    arm: Literal["control", "treatment"] = "control"
    arms: tuple[str, ...] = ()
    """values of the arm column: control's, treatment's"""


ObjectStoreUrl = Annotated[str, Field(pattern=r"^(s3|gs|az)://[^/]+")]


class Config(_Section):
    """The whole configuration of a workspace. Secrets are not in it: only the names of environment variables."""

    data: ObjectStoreUrl | None = None
    """object storage that several machines share; None: the folder data/"""
    experiment: ExperimentConfig
    arms: ArmsConfig | None = None
    collector: CollectorConfig = CollectorConfig()
    judge: JudgeConfig = JudgeConfig()
    replay: ReplayConfig = ReplayConfig()
    cluster: ClusterConfig = ClusterConfig()
    decision: DecisionConfig = DecisionConfig()
    canary: CanaryConfig = CanaryConfig()
    report: ReportConfig = ReportConfig()
    compact: CompactConfig = CompactConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    alerts: AlertsConfig = AlertsConfig()
    metrics: dict[str, CustomMetricConfig] = {}
    segments: dict[str, str] = {}
    """name → read-only SQL expression over `exchanges` (control rows)"""
    prices: dict[str, PriceConfig] = {}
    sources: dict[str, SourceConfig] = {}

    @model_validator(mode="after")
    def _treatment_where_served(self) -> Config:
        if self.experiment.mode != "shadow" and self.arms is not None and self.arms.treatment is None:
            raise ValueError(f"mode = '{self.experiment.mode}' needs [arms.treatment]")
        return self

    @model_validator(mode="after")
    def _whole_stages(self) -> Config:
        if self.experiment.assignment == "md5-100" and self.experiment.mode == "canary":
            for stage in self.canary.stages:
                if stage.percentage % 1:
                    raise ValueError(
                        f"assignment = 'md5-100' takes whole percentages only: a stage of {stage.percentage:g} %"
                    )
        return self

    def require_arms(self) -> ArmsConfig:
        if self.arms is None:
            raise ConfigError("evalpipe.toml has no [arms.control]: add it (see `evalpipe init`)")
        return self.arms


def load_config(path: Path) -> Config:
    """Read and check a configuration file. Raises ConfigError with one line."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"no {path}: write one with `evalpipe init`, or name another with --config") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {place_in_toml(data.decode('utf-8'), str(error))}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return read_config(document, name=str(path))


def read_config(document: dict[str, Any], *, name: str = CONFIG_FILE) -> Config:
    """The configuration of a parsed TOML document. Raises ConfigError with every mistake in one line."""
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{name}: {_explain(error)}") from None


def secret(env_name: str) -> str | None:
    """A secret from the environment; empty counts as absent."""
    return os.environ.get(env_name) or None


MOST_MISTAKES = 8
"""mistakes of a file that are listed"""
_PATTERNS = {
    "name": "letters, digits, '.', '_' and '-' are allowed, 1 to 64 of them",
    "control_from": "the name of an experiment is expected: letters, digits, '.', '_' and '-', 1 to 64 of them",
    "webhook": "an http or https address is expected",
    "link": "a web address such as https://host/page is expected",
    "data": "an address of object storage is expected, such as s3://bucket/prefix (a folder is named with --data)",
    "base_url": "an address such as https://host/v1 is expected, a query such as ?api-version=… may follow",
}
"""what the patterns of those keys ask for, in words"""


def _explain(error: ValidationError) -> str:
    """Every mistake, a sentence each; beyond `MOST_MISTAKES` their number."""
    found = list(dict.fromkeys(_one_mistake(one) for one in error.errors(include_url=False)))
    rest = len(found) - MOST_MISTAKES
    return "; ".join(found[:MOST_MISTAKES]) + (f"; and {rest} more" if rest > 0 else "")


def _one_mistake(one: ErrorDetails) -> str:
    where = [str(part) for part in one["loc"] if part not in {"function-before", "constrained-str"}]
    key = ".".join(where) or "the file"
    if one["type"] == "extra_forbidden":
        near = _nearest(where)
        return f"unknown key {key}" + (f"; did you mean {near!r}?" if near else "")
    if one["type"] == "missing":
        return f"{key} is missing"
    message = mistake_in_words(one["msg"])
    if one["type"] == "string_pattern_mismatch":
        message = _PATTERNS[where[-1]]
    value = one["input"]
    if isinstance(value, dict | BaseModel) or _holds_secret(where, value):
        return f"{key}: {message}"
    return f"{key} = {_shown(value)!r}: {message}"


def _holds_secret(where: list[str], value: Any) -> bool:
    """Whether a value may be a key, by its name or its form: it is not printed then."""
    if any(is_credential_name(part) for part in where):
        return True
    return isinstance(value, str) and KEY_SHAPES.search(value) is not None


def _shown(value: Any) -> Any:
    return shown_url(value) if isinstance(value, str) and "://" in value else value


def _nearest(where: list[str]) -> str | None:
    """The known key closest to the unknown last part of `where`."""
    model: type[BaseModel] | None = Config
    for part in where[:-1]:
        model = _section_of(model, part)
        if model is None:
            return None
    assert model is not None
    matches = difflib.get_close_matches(where[-1], list(model.model_fields), n=1, cutoff=0.6)
    return matches[0] if matches else None


def _section_of(model: type[BaseModel] | None, part: str) -> type[BaseModel] | None:
    if model is None or part not in model.model_fields:
        return None
    stack: list[Any] = [model.model_fields[part].annotation]
    while stack:
        annotation = stack.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
        stack.extend(get_args(annotation))
    return None
