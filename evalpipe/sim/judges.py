"""How a simulated judge answers: by stated rules, by stated rates, or with recorded judgements; the same for the same prompt."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalpipe.errors import ConfigError
from evalpipe.providers.conversation import content_text
from evalpipe.providers.json_values import MalformedJSONError, as_dict, as_list, as_text, dump, parse
from evalpipe.sim.requests import BadRequestError, SimRequest, seeded
from evalpipe.sim.settings import JudgeBehaviour

_SEATS = ("response_1", "response_2")
UNREADABLE = "Both responses have their merits. On balance I would lean towards the first one, but it is close."


@dataclass(frozen=True, slots=True)
class _Verdict:
    """`winner`: response_1 | response_2 | tie; None: nothing readable. `scores` per response, in [0, 1]."""

    winner: str | None
    scores: tuple[float, float]
    reasoning: str


class SimulatedJudge:
    """Answers judge prompts according to `behaviour`. `seed` moves every draw of the stated rates."""

    def __init__(self, behaviour: JudgeBehaviour, seed: int) -> None:
        self._behaviour = behaviour
        self._seed = seed
        self._recorded = RecordedJudgements(behaviour.pairs) if behaviour.pairs is not None else None

    @property
    def recorded_judges(self) -> frozenset[str]:
        """The judges whose recorded judgements can be asked for by the model's name."""
        if self._recorded is None or self._behaviour.behaviour != "replay":
            return frozenset()
        return frozenset(self._recorded.judges)

    def reply(self, prompt: JudgePrompt, model: str) -> str:
        """The reply text. Raises BadRequestError where a replay has nothing recorded for the prompt."""
        if len(prompt.responses) == 1:
            return self._alone(prompt, model)
        verdict = {"checks": self._by_rules, "stated": self._by_rates, "replay": self._by_record}[
            self._behaviour.behaviour
        ](prompt, model)
        if verdict.winner is None:
            return UNREADABLE
        return prompt.reply(list(verdict.scores), verdict.winner, verdict.reasoning)

    def _by_rules(self, prompt: JudgePrompt, model: str) -> _Verdict:
        checked = [check(prompt.request, response.text, response.state) for response in prompt.responses]
        first, second = (result.points for result in checked)
        winner = "tie" if first == second else _SEATS[first < second]
        broken = [
            f"response {seat}: {', '.join(result.broken) or 'none'}" for seat, result in enumerate(checked, start=1)
        ]
        return _Verdict(winner, (first / FULL, second / FULL), f"Stated rules broken by {'; by '.join(broken)}.")

    def _by_rates(self, prompt: JudgePrompt, model: str) -> _Verdict:
        stated = self._behaviour
        shown = [(response.text, response.state) for response in prompt.responses]
        rng = seeded(self._seed, model, prompt.request, shown, prompt.n_turns)
        if rng.random() < stated.unparseable_rate:
            return _Verdict(None, (0, 0), "")
        if rng.random() < stated.tie_rate:
            return _Verdict("tie", (0.7, 0.7), "Neither is better.")
        if rng.random() < stated.seat_bias:
            return _Verdict(_SEATS[0], (0.8, 0.6), "The first response reads better.")
        first, second = prompt.responses
        if rng.random() < stated.length_bias:
            return _decisive(len(first.text) >= len(second.text), "The longer response is more thorough.")
        better_first = self._first_is_better(prompt)
        if better_first is None:
            return _Verdict("tie", (0.7, 0.7), "Neither is better.")
        right = rng.random() < stated.accuracy
        return _decisive(better_first == right, "It answers more of what was asked.")

    def _first_is_better(self, prompt: JudgePrompt) -> bool | None:
        """By the recorded label where there is one, else by the latent quality of the two texts."""
        found = self._recorded.find(prompt) if self._recorded is not None else None
        if found is not None and found[0].label in {"a", "b", "tie"}:
            pair, a_first = found
            return None if pair.label == "tie" else (pair.label == "a") == a_first
        first, second = (self._quality(response) for response in prompt.responses)
        return None if first == second else first > second

    def _quality(self, response: ShownResponse) -> float:
        return -1.0 if response.state == "empty" else seeded(self._seed, "quality", response.text).random()

    def _by_record(self, prompt: JudgePrompt, model: str) -> _Verdict:
        assert self._recorded is not None  # SimSettings asks for the file
        found = self._recorded.find(prompt)
        judge = model if model in self._recorded.judges else self._behaviour.judge
        if judge is None and len(self._recorded.judges) == 1:
            judge = next(iter(self._recorded.judges))
        if judge is None:
            raise BadRequestError(f"model: {model!r} is not one of the recorded judges")
        if found is None:
            raise BadRequestError("no recorded pair has these two responses")
        pair, a_first = found
        for order in ("ab" if a_first else "ba", "single", "unknown"):
            if (judge, order) in pair.verdicts:
                verdict = pair.verdicts[judge, order]
                break
        else:
            raise BadRequestError(f"{judge} recorded nothing for this pair in this order")
        if verdict is None:
            return _Verdict(None, (0, 0), "")
        if verdict == "tie":
            return _Verdict("tie", (0.7, 0.7), f"As recorded by {judge}.")
        return _decisive((verdict == "a") == a_first, f"As recorded by {judge}.")

    def _alone(self, prompt: JudgePrompt, model: str) -> str:
        response = prompt.responses[0]
        if prompt.lists_claims:
            return self._claims(prompt, model)
        if prompt.reference is not None:
            share = shared_words(prompt.reference, response.text)
            return prompt.reply([share], None, f"{share:.0%} of the reference's words are in the response.")
        if self._behaviour.behaviour == "stated":
            rng = seeded(self._seed, model, prompt.request, response.text, response.state, prompt.n_turns)
            if rng.random() < self._behaviour.unparseable_rate:
                return UNREADABLE
            blur = (1 - self._behaviour.accuracy) * (rng.random() - 0.5)
            score = min(max(self._quality(response) + blur, 0.0), 1.0)
            return prompt.reply([score], None, "Scored by a latent quality of the text.")
        result = check(prompt.request, response.text, response.state)
        return prompt.reply([result.points / FULL], None, f"Stated rules broken: {', '.join(result.broken) or 'none'}.")

    def _claims(self, prompt: JudgePrompt, model: str) -> str:
        """Every sentence of the answer, marked by the words of the context; with stated rates, rightly marked with `accuracy`."""
        response = prompt.responses[0]
        marked = mark_claims(prompt.context or "", response.text)
        if self._behaviour.behaviour == "stated":
            rng = seeded(self._seed, model, prompt.context, response.text, prompt.n_turns)
            if rng.random() < self._behaviour.unparseable_rate:
                return UNREADABLE
            for one in marked:
                if rng.random() >= self._behaviour.accuracy:
                    one["verdict"] = "not_in_context" if one["verdict"] == "supported" else "supported"
        document: dict[str, Any] = {"reasoning": "Marked by the words of the context."} if prompt.with_reasoning else {}
        return dump({**document, "claims": marked})


def _decisive(first_wins: bool, reasoning: str) -> _Verdict:
    return _Verdict(_SEATS[not first_wins], (0.8, 0.6) if first_wins else (0.6, 0.8), reasoning)


# The stated rules by which the `checks` judge prefers an answer: checkable facts, no measurement of quality.
#
# Every answer begins with 9 points and loses, down to 0:
#
# | rule | points |
# |---|---|
# | empty: no words at all | 9 |
# | echo: most of it repeats the request's own words in the request's order | 4 |
# | language: another language than asked for (named in the request, else the request's own), where both can be detected | 3 |
# | format: JSON asked for and it does not parse; code asked for and there is none; a list asked for and there is none | 3 |
# | loop: one sentence or line is repeated three times or more | 3 |
# | cut: it ended at its token limit | 2 |
# | refused: it was marked as a refusal | 2 |
#
# The answer with more points wins; equal points are a tie.


FULL = 9
PENALTIES = {"empty": 9, "echo": 4, "language": 3, "format": 3, "loop": 3, "cut": 2, "refused": 2}

_LANGUAGES = {
    "english": "the and is of to in that for with you are this it as on be have can not your",
    "german": "der die das und ist nicht ein eine mit für auf sie den von zu im auch ich wir sind wie",
    "french": "le la les et est un une il elle des pour dans que qui avec sur vous pas du au nous sont ce votre",
    "spanish": "el la los las y es un una de que en para con por no del su se como está más usted",
    "italian": "il la che è di un una per con non del della sono come più gli nel anche questo si",
    "portuguese": "o a os as e é de que em um uma para com não do da se por mais como você",
    "dutch": "de het een en is van dat niet te op voor met zijn aan ook maar bij wordt naar je",
}
_STOPWORDS = {name: frozenset(words.split()) for name, words in _LANGUAGES.items()}
_OWN_NAMES = {
    "deutsch": "german", "français": "french", "francais": "french", "español": "spanish", "espanol": "spanish",
    "italiano": "italian", "português": "portuguese", "nederlands": "dutch",
}  # fmt: skip
_SCRIPTS = (
    ("russian", re.compile("[\u0400-\u04ff]")),
    ("greek", re.compile("[\u0370-\u03ff]")),
    ("arabic", re.compile("[\u0600-\u06ff]")),
    ("hebrew", re.compile("[\u0590-\u05ff]")),
    ("hindi", re.compile("[\u0900-\u097f]")),
    ("korean", re.compile("[\uac00-\ud7af]")),
    ("japanese", re.compile("[\u3040-\u30ff]")),
    ("chinese", re.compile("[\u4e00-\u9fff]")),
)
_NAMES = "|".join([*_LANGUAGES, *_OWN_NAMES, *(name for name, _ in _SCRIPTS)])
_ASKED_LANGUAGE = re.compile(rf"\b(?:in|into|to|auf|en|in het|em)\s+({_NAMES})\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?\n]")
_FENCED = re.compile(r"```\w*\n(.*?)```", re.DOTALL)
_CODE = re.compile(
    r"```|^\s*(?:def|class|import|from|SELECT|function|const|let|var|public|#include|<\w+)\b|[;{}]\s*$", re.M | re.I
)
_LIST = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+\S", re.MULTILINE)
_ASKS_JSON = re.compile(r"\bjson\b", re.IGNORECASE)
_ASKS_CODE = re.compile(
    r"\b(?:write|give|show|create|implement|fix)\b.{0,60}\b(?:code|function|script|program|query|html|sql|regex|class)\b",
    re.I,
)
_ASKS_LIST = re.compile(
    r"\b(?:bullet(?:ed)? (?:points?|list)|numbered list|as a list|list of (?:\d|three|four|five))", re.I
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """An answer's points in 0..9, and the rules it broke."""

    points: int
    broken: tuple[str, ...]


def check(request: str, answer: str, state: str | None) -> Checked:
    """The points of an answer. `state`: empty | refused | truncated | None, from the judge's prompt."""
    if state == "empty" or not answer.strip():
        return Checked(points=0, broken=("empty",))
    rules = {
        "echo": _echoes(request, answer),
        "language": _other_language(request, answer),
        "format": _wrong_format(request, answer),
        "loop": _loops(answer),
        "cut": state == "truncated",
        "refused": state == "refused",
    }
    broken = tuple(name for name, is_broken in rules.items() if is_broken)
    return Checked(points=max(FULL - sum(PENALTIES[name] for name in broken), 0), broken=broken)


def language(text: str) -> str | None:
    """The language a text is most likely in, None where it cannot be detected."""
    letters = sum(char.isalpha() for char in text)
    for name, script in _SCRIPTS:
        if letters and len(script.findall(text)) > 0.3 * letters:
            return name
    words = [word.lower() for word in _WORD.findall(text[:5000])]
    hits = Counter({name: sum(word in known for word in words) for name, known in _STOPWORDS.items()})
    (best, n_best), (_, n_next) = hits.most_common(2)
    return best if n_best >= 3 and n_best > 1.3 * n_next else None


def asked_language(request: str) -> str | None:
    named: list[str] = _ASKED_LANGUAGE.findall(request)
    if named:
        name = named[-1].lower()
        return _OWN_NAMES.get(name, name)
    return language(request)


def _other_language(request: str, answer: str) -> bool:
    asked, found = asked_language(request), language(answer)
    return asked is not None and found is not None and asked != found


def _wrong_format(request: str, answer: str) -> bool:
    if _ASKS_JSON.search(request):
        return not _is_json(answer)
    if _ASKS_CODE.search(request):
        return _CODE.search(answer) is None
    return _ASKS_LIST.search(request) is not None and len(_LIST.findall(answer)) < 2


def _is_json(answer: str) -> bool:
    fenced = _FENCED.findall(answer)
    try:
        json.loads(fenced[0] if len(fenced) == 1 else answer)
    except (ValueError, RecursionError):
        return False
    return True


def _echoes(request: str, answer: str) -> bool:
    answered, asked = _words(answer), _words(request)
    if len(answered) < 4:
        return False
    grams = {tuple(asked[i : i + 4]) for i in range(len(asked) - 3)}
    own = [tuple(answered[i : i + 4]) for i in range(len(answered) - 3)]
    return sum(gram in grams for gram in own) > 0.6 * len(own)


def _loops(answer: str) -> bool:
    pieces = Counter(" ".join(piece.split()).lower() for piece in _SENTENCE.findall(answer + "\n"))
    return any(n >= 3 and len(piece) >= 12 for piece, n in pieces.items())


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text[:20_000])]


# Claims, by a stated rule: every sentence of the answer is one. It is supported where all its words of four letters or more and
# all its numbers are in the context, contradicted where only its numbers are not, else not in the context.


_LONG_WORD = re.compile(r"[^\W\d_]{4,}")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_CLAIM = re.compile(r"[^.!?\n]*(?:[.](?=\d)[^.!?\n]*)*[.!?\n]")


def mark_claims(context: str, answer: str) -> list[dict[str, str]]:
    """[{"claim", "verdict"}] of an answer's sentences; questions and sentences without such a word or number are no claims."""
    words = {word.lower() for word in _LONG_WORD.findall(context)}
    numbers = set(_NUMBER.findall(context))
    marked = []
    for sentence in _CLAIM.findall(answer + "\n"):
        claim = " ".join(sentence.split())
        own, counted = {word.lower() for word in _LONG_WORD.findall(claim)}, set(_NUMBER.findall(claim))
        if claim.endswith("?") or not own | counted:
            continue
        verdict = "not_in_context" if own - words else "contradicted" if counted - numbers else "supported"
        marked.append({"claim": claim, "verdict": verdict})
    return marked


def shared_words(reference: str, answer: str) -> float:
    """The share of the reference's words that are in the answer."""
    wanted = set(_words(reference)) | set(_NUMBER.findall(reference))
    found = set(_words(answer)) | set(_NUMBER.findall(answer))
    return len(wanted & found) / len(wanted) if wanted else 1.0


# Judgements that other people recorded, found again by what a judge prompt shows.


_SHOWN_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class RecordedPair:
    """`verdicts`: (judge, order) → a | b | tie | None (unreadable); order: ab | ba | single | unknown."""

    prompt: str
    label: str | None
    verdicts: dict[tuple[str, str], str | None]


class RecordedJudgements:
    """The pairs of a `pairs` file, by their two responses."""

    def __init__(self, path: Path) -> None:
        self._pairs: defaultdict[tuple[str, str], list[RecordedPair]] = defaultdict(list)
        self.judges: set[str] = set()
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise ConfigError(f"cannot read the pairs {path}: {error.strerror}") from error
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    self._add(as_dict(parse(line)))
                except MalformedJSONError as error:
                    raise ConfigError(f"{path}:{number}: {error}") from error

    def _add(self, row: dict[str, Any]) -> None:
        verdicts: dict[tuple[str, str], str | None] = {}
        for judgement in map(as_dict, as_list(row.get("judgements"))):
            name = judge_name(judgement)
            self.judges.add(name)
            verdicts.setdefault((name, str(judgement.get("order"))), as_text(judgement.get("verdict")))
        prompt = row.get("prompt")
        words = (
            prompt
            if isinstance(prompt, str)
            else "".join(content_text(as_dict(m).get("content")) for m in as_list(prompt))
        )
        key = (_shown(content_text(row.get("response_a"))), _shown(content_text(row.get("response_b"))))
        self._pairs[key].append(RecordedPair(_shown(words), as_text(row.get("label")), verdicts))

    def find(self, prompt: JudgePrompt) -> tuple[RecordedPair, bool] | None:
        """The pair a prompt shows, and whether response_a has the first seat."""
        first, second = (_shown(response.text) for response in prompt.responses)
        for key, a_first in (((first, second), True), ((second, first), False)):
            candidates = self._pairs.get(key)
            if candidates:
                asked = "".join(prompt.request.split())
                return next((pair for pair in candidates if pair.prompt[:200] in asked), candidates[0]), a_first
        return None


def judge_name(judgement: dict[str, Any]) -> str:
    """A `method` beside `judge` is part of its name."""
    judge, method = as_text(judgement.get("judge")) or "unknown", as_text(judgement.get("method"))
    return f"{judge}/{method}" if method else judge


def _shown(text: str) -> str:
    """A text as far as it survives being shown to a judge: spaces, cuts in the middle and neutralised tags left out."""
    words = "".join(text.replace("\u2039", "<").split())
    return words if len(words) <= 2 * _SHOWN_CHARACTERS else words[:_SHOWN_CHARACTERS] + words[-_SHOWN_CHARACTERS:]


# Judge prompts as a simulated judge reads them: the fenced blocks, the dimensions, the scale, the shape of the reply.


# The layout that evalpipe.judging.prompt documents; it may not be imported from here.
_BLOCK = re.compile(
    r'<(request|context|reference|response(?:-[12])?)-([0-9a-f]{16})(?: state="(\w+)")?>\n(.*?)\n?</\1-\2>', re.DOTALL
)
_SCALE = re.compile(r"from (-?\d+(?:\.\d+)?) \(worst\) to (-?\d+(?:\.\d+)?) \(best\)")
_DIMENSION = re.compile(r"^- ([A-Za-z_][\w-]*):", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownResponse:
    text: str
    state: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgePrompt:
    """`responses`: two where pairs are judged, one where answers are judged alone. `n_turns`: a repair has more than one.
    `context`, `reference`: what an answer is checked against; `lists_claims`: the reply is a list of its claims."""

    request: str
    responses: tuple[ShownResponse, ...]
    dimensions: tuple[str, ...]
    scale: tuple[float, float]
    with_reasoning: bool
    n_turns: int
    nonce: str
    context: str | None = None
    reference: str | None = None
    lists_claims: bool = False

    def reply(self, scores: list[float], winner: str | None, reasoning: str) -> str:
        """The reply's JSON: the scores are per response in [0, 1], written on the judge's own scale."""
        low, high = self.scale
        whole = high - low >= 2

        def scored(score: float) -> dict[str, float]:
            value = low + score * (high - low)
            return dict.fromkeys(self.dimensions, round(value) if whole else round(value, 2))

        document: dict[str, Any] = {"reasoning": reasoning} if self.with_reasoning else {}
        if winner is None:
            return dump({**document, **scored(scores[0])})
        return dump({**document, "response_1": scored(scores[0]), "response_2": scored(scores[1]), "winner": winner})


def read_judge_prompt(request: SimRequest) -> JudgePrompt | None:
    """The judge prompt in a request, None where it is an ordinary one."""
    users = [message["content"] for message in request.view.messages if message["role"] == "user"]
    if not users or "<request-" not in users[0]:
        return None
    blocks: dict[str, ShownResponse] = {}
    nonce = ""
    for tag, code, state, text in _BLOCK.findall(users[0]):
        blocks.setdefault(tag, ShownResponse(text=text, state=state or None))
        nonce = nonce or code
    names = [name for name in ("response", "response-1", "response-2") if name in blocks]
    if "request" not in blocks or names not in (["response"], ["response-1", "response-2"]):
        return None
    schema = _reply_schema(request)
    system = request.view.system_text
    scale = _SCALE.search(system)
    return JudgePrompt(
        request=blocks["request"].text,
        responses=tuple(blocks[name] for name in names),
        dimensions=_dimensions(schema, paired=len(names) == 2) or tuple(_DIMENSION.findall(system)) or ("accuracy",),
        scale=(float(scale[1]), float(scale[2])) if scale else ((0.0, 10.0) if len(names) == 2 else (0.0, 1.0)),
        with_reasoning="reasoning" in _properties(schema) if schema else '"reasoning"' in system,
        n_turns=len(users),
        nonce=nonce,
        context=blocks["context"].text if "context" in blocks else None,
        reference=blocks["reference"].text if "reference" in blocks else None,
        lists_claims=len(names) == 1 and ("claims" in _properties(schema) if schema else '"claims"' in system),
    )


def _reply_schema(request: SimRequest) -> dict[str, Any] | None:
    """The schema of the reply: of the structured output, or of the tool that must be called."""
    if request.schema is not None:
        return request.schema
    if request.must_call:
        return next((tool.schema for tool in request.tools if tool.name == request.must_call[0]), None)
    return None


def _dimensions(schema: dict[str, Any] | None, *, paired: bool) -> tuple[str, ...]:
    if schema is None:
        return ()
    properties: Mapping[str, Any] = _properties(schema)
    if paired:
        properties = _properties(as_dict(properties.get("response_1")))
    return tuple(name for name in properties if name not in {"reasoning", "winner"})


def _properties(schema: dict[str, Any]) -> dict[str, Any]:
    return as_dict(schema.get("properties"))
