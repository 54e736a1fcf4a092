"""evalpipe.toml: the template names every key and is valid; every mistake is one line with key, value and a way out."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from evalpipe.config import Config, load_config, read_config
from evalpipe.errors import ConfigError
from evalpipe.workspace.paths import config_template, init_workspace


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _sections(part)]


def _keys(model: type[BaseModel]) -> set[str]:
    keys = set(model.model_fields)
    for field in model.model_fields.values():
        for section in _sections(field.annotation):
            if section.__name__ != "Margin":  # written as a number or a percentage
                keys |= _keys(section)
    return keys


def test_the_template_documents_every_key_and_is_valid(tmp_path: Path) -> None:
    text = config_template(name="first", mode="shadow")
    missing = {key for key in _keys(Config) if key not in text}
    assert not missing
    config = read_config(tomllib.loads(text))
    assert config.experiment.name == "first"
    assert config.judge.max_usd == 5.0
    # What is commented out shows the default: with every comment removed the document is valid, too.
    lines = [
        line[2:] if line.startswith("# ") and ("=" in line or line.startswith(("# [", "#  "))) else line
        for line in text.splitlines()
    ]
    everything = read_config(
        tomllib.loads("\n".join(line for line in lines if not line.startswith(("# ", "function"))))
    )
    assert everything.collector == Config.model_validate({"experiment": {"name": "x"}}).collector.model_copy(
        update={
            "stream_usage": "inject",
            "shadow_budget_usd": 50.0,
            "redact": everything.collector.redact,
            "replica": "host-1",
        }
    )
    assert everything.canary == Config.model_validate({"experiment": {"name": "x"}}).canary


BASE: dict[str, Any] = {"experiment": {"name": "x"}}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"experiment": {"name": "x", "mod": "ab"}}, "unknown key experiment.mod; did you mean 'mode'?"),
        ({"experiment": {"name": "a b"}}, "experiment.name = 'a b': letters, digits, '.', '_' and '-' are allowed"),
        ({"experiment": {"name": ".hidden"}}, "must not begin with '.'"),
        ({"experiment": {"name": "-dash"}}, "must not begin with '-'"),
        ({"experiment": {}}, "experiment.name is missing"),
        (
            {"experiment": {"name": "x", "control_from": "a b"}},
            "experiment.control_from = 'a b': the name of an experiment",
        ),
        ({"experiment": {"name": "x", "control_from": "x"}}, "control_from is the experiment itself"),
        ({"experiment": {"name": "x", "mode": "ab", "control_from": "y"}}, "needs mode = 'shadow', not 'ab'"),
        ({"experiment": {"name": "x", "mode": "blue"}}, "experiment.mode = 'blue'"),
        ({**BASE, "collector": {"port": 70000}}, "collector.port = 70000"),
        ({**BASE, "collector": {"redact": ["emial"]}}, "'emial' is not one of email, phone, card, api_key"),
        ({**BASE, "arms": {"control": {"provider": "openai", "base_url": "host"}}}, "arms.control.base_url = 'host'"),
        ({**BASE, "decision": {"metrics": {"cost": {"margin": "a lot"}}}}, "decision.metrics.cost.margin"),
        ({**BASE, "canary": {"stages": [{"percentage": 5}, {"percentage": 5}]}}, "must rise strictly"),
        ({**BASE, "judges": {}}, "unknown key judges; did you mean 'judge'?"),
        ({**BASE, "metrics": {"m": {}}}, "give either sql"),
    ],
)
def test_a_mistake_is_one_line(document: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(document)
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message
    assert message.startswith("evalpipe.toml: ")


def _numbers_and_flags() -> list[tuple[list[str], str]]:
    """(path of the key, its kind) of every number and boolean of the configuration, by the model's JSON schema."""
    schema = Config.model_json_schema()
    found = []

    def walk(node: dict[str, Any], path: list[str]) -> None:
        for one in (node, *node.get("anyOf", ())):
            if "$ref" in one:
                walk(schema["$defs"][one["$ref"].rpartition("/")[2]], path)
            for name, child in one.get("properties", {}).items():
                walk(child, [*path, name])
            if isinstance(one.get("additionalProperties"), dict):
                walk(one["additionalProperties"], [*path, "some"])
            if one.get("type") in {"integer", "number", "boolean"}:
                found.append((path, one["type"]))

    walk(schema, [])
    return [(path, kind) for path, kind in found if "margin" not in path]  # "10%" is a margin


def test_a_text_or_a_boolean_is_no_number_and_a_whole_number_is_one() -> None:
    found = _numbers_and_flags()
    assert {"judge.max_usd", "collector.port", "collector.workers"} <= {".".join(path) for path, _ in found}
    words = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}
    for path, kind in found:
        for value in ("5", "true", *((True,) if kind != "boolean" else (1,)), *((5.5,) if kind == "integer" else ())):
            document: Any = value
            for name in reversed(path):
                document = {name: document}
            with pytest.raises(ConfigError) as caught:
                read_config(document)
            (line,) = str(caught.value).splitlines()
            assert f"{'.'.join(path)} = {value!r}: must be {words[kind]}" in line
    config = read_config({**BASE, "judge": {"max_usd": 5}, "collector": {"timeout_s": 30}})
    assert (config.judge.max_usd, config.collector.timeout_s) == (5.0, 30.0)


def test_margins_read_as_absolute_or_relative() -> None:
    config = read_config({**BASE, "decision": {"metrics": {"a": {"margin": "10%"}, "b": {"margin": 0.02}}}})
    a, b = config.decision.metrics["a"].margin, config.decision.metrics["b"].margin
    assert a is not None
    assert b is not None
    assert (a.value, a.relative) == (0.1, True)
    assert (b.value, b.relative) == (0.02, False)


def test_init_writes_once_and_never_overwrites(tmp_path: Path) -> None:
    written = init_workspace(tmp_path / "w", name="n")
    assert {path.name for path in written} == {"evalpipe.toml", ".gitignore"}
    assert load_config(tmp_path / "w" / "evalpipe.toml").experiment.name == "n"
    with pytest.raises(ConfigError, match="exists already"):
        init_workspace(tmp_path / "w")
    init_workspace(tmp_path / "Größe 2")
    assert load_config(tmp_path / "Größe 2" / "evalpipe.toml").experiment.name == "Gr-e-2"


def test_init_beside_loaded_data_names_its_experiment(tmp_path: Path) -> None:
    (tmp_path / "data/exchanges/experiment=prod").mkdir(parents=True)
    init_workspace(tmp_path)
    assert load_config(tmp_path / "evalpipe.toml").experiment.name == "prod"
    (tmp_path / "evalpipe.toml").unlink()
    (tmp_path / "data/exchanges/experiment=other").mkdir()
    init_workspace(tmp_path)
    assert load_config(tmp_path / "evalpipe.toml").experiment.name not in {"prod", "other"}


def test_a_file_that_is_missing_or_no_toml_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="evalpipe init"):
        load_config(tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(bad)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('[experiment]\nname = "x"\nmode = shadow\n', 'line 3, mode: Invalid value; a text needs quotes: mode = "…"'),
        (
            "[arms.control]\nbase_url = https://h/v1\n",
            'line 2, base_url: Invalid value; a text needs quotes: base_url = "…"',
        ),
        ('[experiment]\nname = = "x"\n', "line 2, name: Invalid value"),
    ],
)
def test_a_line_that_is_no_toml_is_named_with_what_helps(tmp_path: Path, text: str, wanted: str) -> None:
    path = tmp_path / "evalpipe.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path} is not valid TOML: {wanted}"


def test_a_line_that_is_no_toml_never_shows_its_value(tmp_path: Path) -> None:
    path = tmp_path / "evalpipe.toml"
    path.write_text("[arms.control]\napi_key_env = sk-ant-api03-0123456789\n")
    with pytest.raises(ConfigError, match="line 2, api_key_env") as caught:
        load_config(path)
    assert "0123456789" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('mode = "ab"\nassignment = "md5-100"\nsalt = "s"\n', "draws by the experiment's name: leave salt out"),
        (
            'mode = "ab"\nassignment = "md5-100"\ntreatment_percent = 12.5\n',
            "whole percentages only: treatment_percent = 12.5",
        ),
        (
            'mode = "canary"\nassignment = "md5-100"\n[canary]\nstages = [{percentage = 0.5}, {percentage = 100}]\n',
            "whole percentages only: a stage of 0.5 %",
        ),
    ],
)
def test_the_common_recipe_takes_no_salt_and_whole_percentages(tmp_path: Path, text: str, wanted: str) -> None:
    path = tmp_path / "evalpipe.toml"
    path.write_text(f'[experiment]\nname = "x"\n{text}')
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert wanted in str(caught.value)
