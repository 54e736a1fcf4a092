"""Judge files: what they make, what changes their fingerprint, and one line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalpipe.errors import ConfigError
from evalpipe.judging.spec import JudgeSpec, judge_names, load_judge

ROOT = Path(__file__).parents[2]
SHIPPED = (ROOT / "judges/pairwise.toml").read_text(encoding="utf-8")


def load(
    folder: Path, text: str, *, prompt: str | None = None, name: str = "mine", model: str | None = None
) -> JudgeSpec:
    (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    if prompt is not None:
        (folder / "pairwise.j2").write_text(prompt, encoding="utf-8")
    return load_judge(name, [folder, ROOT / "judges"], [folder, ROOT / "prompts"], model=model)


def test_the_shipped_judges() -> None:
    assert judge_names([ROOT / "judges"]) == ["faithfulness", "pairwise", "pointwise", "reference", "strict"]
    specs = {name: load_judge(name, [ROOT / "judges"], [ROOT / "prompts"]) for name in judge_names([ROOT / "judges"])}
    assert list(specs["pairwise"].dimensions) == ["accuracy", "clarity", "completeness"]
    assert list(specs["pointwise"].dimensions) == ["relevance", "faithfulness"]
    assert specs["pointwise"].scale == (0.0, 1.0)
    assert not specs["strict"].reasoning
    assert all(not spec.params for spec in specs.values())
    assert len({spec.fingerprint for spec in specs.values()}) == 5


def test_what_makes_another_judge_and_what_does_not(tmp_path: Path) -> None:
    same = load(tmp_path, SHIPPED)
    assert load(tmp_path, SHIPPED, name="renamed").fingerprint == same.fingerprint
    assert load(tmp_path, "# a comment\n" + SHIPPED).fingerprint == same.fingerprint
    assert load(tmp_path, 'base_url = "http://127.0.0.1:1"\n' + SHIPPED).fingerprint == same.fingerprint
    assert load(tmp_path, "repeats = 3\n" + SHIPPED).fingerprint == same.fingerprint
    others = [
        load(tmp_path, SHIPPED, model="another-model"),
        load(tmp_path, SHIPPED.replace("max_tokens = 1024", "max_tokens = 1000")),
        load(tmp_path, SHIPPED.replace("Is it easy to follow", "Is it pleasant to read")),
        load(tmp_path, SHIPPED + "\n[params]\ntemperature = 0\n"),
        load(tmp_path, SHIPPED.replace("reasoning = true", "reasoning = false")),
        load(tmp_path, SHIPPED, prompt="Say which one is better: {{ dimensions }}"),
    ]
    assert len({same.fingerprint, *(spec.fingerprint for spec in others)}) == 7


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('mode = "pairwise"', 'mode = "triple"', "mode = 'triple'"),
        ('mode = "pairwise"', "", "mode is missing"),
        ("max_tokens = 1024", "max_token = 1024", "unknown key max_token; did you mean 'max_tokens'?"),
        ("max_tokens = 1024", 'max_tokens = "many"', "max_tokens = 'many'"),
        ("max_tokens = 1024", "max_tokens = 0", "max_tokens = 0"),
        ("scale = [0, 10]", "scale = [10, 0]", "scale = [10.0, 0.0]"),
        ("clarity =", "winner =", "dimensions.winner"),
        ("clarity =", '"no spaces" =', "dimensions"),
        ('template = "pairwise.j2"', 'template = "none.j2"', "no such file in prompts/"),
        ('template = "pairwise.j2"', 'template = "../../etc/passwd"', "template"),
        ("max_tokens = 1024", "max_tokens = = 1", "not valid TOML"),
    ],
)
def test_a_broken_file_is_one_line_with_file_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in SHIPPED
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, SHIPPED.replace(old, new, 1))
    assert message in str(raised.value)
    assert "mine.toml" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("template", ["{% for %}", "{{ nothing_known }}", "   ", "{{ ''.__class__.__mro__ }}"])
def test_a_broken_template_is_one_line(tmp_path: Path, template: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, SHIPPED, prompt=template)
    assert "pairwise.j2" in str(raised.value)


def test_an_unknown_judge_is_told_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'pairwise'"):
        load_judge("pairwize", [ROOT / "judges"], [ROOT / "prompts"])
    with pytest.raises(ConfigError, match="letters, digits"):
        load_judge("../pairwise", [ROOT / "judges"], [ROOT / "prompts"])
