"""JSON schemas of structured answers, in the subset each vendor enforces."""

from __future__ import annotations

from typing import Any

from evalpipe.providers.base import NotShadowableError
from evalpipe.providers.jsontext import as_dict, as_list, dump

_BOUNDS = frozenset(
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength"}
    | {"minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties", "pattern"}
)


def for_anthropic(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as `output_config.format` takes it: closed objects, bounds in words. Raises NotShadowableError where it is
    recursive or its objects are open: neither can be said."""
    definitions = {
        f"#/{key}/{name}": inner for key in ("$defs", "definitions") for name, inner in as_dict(schema.get(key)).items()
    }
    _refuse_recursion(schema, definitions, ())
    closed: dict[str, Any] = _closed(schema)
    return closed


def is_strict_for_anthropic(schema: dict[str, Any]) -> bool:
    """Whether Anthropic's strict tool use takes the schema as it is: closed objects, no bounds, no recursion. Where it does
    not, the tool is better offered with its bounds than strict without them."""
    try:
        return for_anthropic(schema) == schema
    except NotShadowableError:
        return False


def is_strict(schema: Any) -> bool:
    """Whether OpenAI's strict mode takes the schema: every object closed, every property required."""
    if isinstance(schema, list):
        return all(is_strict(item) for item in schema)
    if not isinstance(schema, dict):
        return True
    properties = schema.get("properties")
    if isinstance(properties, dict) or schema.get("type") == "object":
        named = as_dict(properties)
        if schema.get("additionalProperties") is not False or set(as_list(schema.get("required"))) != set(named):
            return False
    return all(is_strict(value) for value in schema.values())


def _closed(value: Any) -> Any:
    if isinstance(value, list):
        return [_closed(item) for item in value]
    if not isinstance(value, dict):
        return value
    result: dict[str, Any] = {}
    for key, inner in value.items():
        if key in {"properties", "$defs", "definitions"} and isinstance(inner, dict):
            # The keys in here are names, not keywords.
            result[key] = {name: _closed(sub) for name, sub in inner.items()}
        elif key in {"enum", "const", "default", "examples", "required"}:
            result[key] = inner
        elif key not in _BOUNDS:
            result[key] = _closed(inner)
    bounds = ", ".join(f"{key}: {dump(inner)}" for key, inner in value.items() if key in _BOUNDS)
    if bounds:  # said in words, in the form in which Anthropic's own SDK says them
        described = result.get("description")
        result["description"] = f"{described}\n\n{{{bounds}}}" if described else f"{{{bounds}}}"
    if value.get("type") == "object" or "properties" in value:
        if value.get("additionalProperties") not in (None, False):
            raise NotShadowableError("open_schema")
        result["additionalProperties"] = False
    return result


def _refuse_recursion(value: Any, definitions: dict[str, Any], seen: tuple[str, ...]) -> None:
    if isinstance(value, list):
        for item in value:
            _refuse_recursion(item, definitions, seen)
    elif isinstance(value, dict):
        reference = value.get("$ref")
        if isinstance(reference, str):
            if reference in seen or reference == "#" or len(seen) > 50:
                raise NotShadowableError("recursive_schema")
            _refuse_recursion(definitions.get(reference), definitions, (*seen, reference))
        for key, inner in value.items():
            if key not in {"$defs", "definitions"}:
                _refuse_recursion(inner, definitions, seen)
