"""The house rules as failing tests: layers (import-linter), no catch-all modules, the top level."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from evalpipe.files import sql_statements
from evalpipe.version import __version__

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "evalpipe").rglob("*.py"))
STATEMENTS = sorted(path for path in (ROOT / "evalpipe").rglob("*.sql") if "-- name: " in path.read_text("utf-8"))


def test_every_import_contract_holds() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_has_a_name_and_a_docstring(path: Path) -> None:
    assert path.stem not in {"utils", "helpers", "common", "manager", "handler", "misc"}
    source = path.read_text("utf-8")
    assert source.startswith('"""') or not source.strip() or path.name == "__main__.py", (
        "a module begins with its docstring"
    )


@pytest.mark.parametrize("document", ["ARCHITECTURE.md", "CONTRIBUTING.md", "AGENTS.md"])
def test_the_files_that_a_document_names_are_there(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    named = set(re.findall(r"`(?:evalpipe/)?([a-z_0-9]+/[a-z_0-9/]+\.py)`", text))
    assert sorted(name for name in named if not ((ROOT / "evalpipe" / name).exists() or (ROOT / name).exists())) == []
    assert len(named) > 20 or document != "ARCHITECTURE.md"


@pytest.mark.parametrize("path", STATEMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_named_statement_is_run_by_the_module_beside_it(path: Path) -> None:
    package = ".".join(path.parent.relative_to(ROOT).parts)
    statements = sql_statements(package, path.name)
    sources = [module.read_text("utf-8") for module in path.parent.glob("*.py")]
    (runner,) = [source for source in sources if f'sql_statements("{package}", "{path.name}")' in source]
    assert statements and all(f'_SQL["{name}"]' in runner for name in statements)
    assert len(statements) == path.read_text("utf-8").count("-- name: ")


def test_every_imported_package_is_a_declared_dependency() -> None:
    """Also those imported inside a function; what comes with another package only may leave with its next release."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    optional = project["optional-dependencies"]
    extras = [text for name in optional.keys() - {"dev", "docs"} for text in optional[name]]
    declared = {canonicalize_name(Requirement(text).name) for text in [*project["dependencies"], *extras]}
    provided = metadata.packages_distributions()
    imported = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    third_party = imported - set(sys.stdlib_module_names) - {"evalpipe"}
    assert {"duckdb", "anthropic", "phonenumbers"} <= third_party  # also the lazy ones are found
    undeclared = {
        name for name in third_party if not {canonicalize_name(one) for one in provided.get(name, [name])} & declared
    }
    assert undeclared == set()


def test_the_package_and_its_metadata_have_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["version"] == __version__


def test_only_the_clients_import_a_provider_sdk() -> None:
    """The judge's client and the demo's traffic are the only places that import an SDK."""
    importers = {
        str(path.relative_to(ROOT / "evalpipe"))
        for path in MODULES
        for line in path.read_text("utf-8").splitlines()
        if line.strip().startswith(("import anthropic", "import openai", "from anthropic", "from openai"))
    }
    assert all(name.startswith(("calls/", "workspace/demo")) for name in importers), importers


def test_the_top_level_is_the_users() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout: the list of tracked files is unknown")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    allowed = {"pyproject.toml", "README.md", "evalpipe", "judges", "prompts", "data", "reports", "tests"}
    allowed |= {"Makefile", "LICENSE", "CHANGELOG.md", "constraints.txt", "hatch_build.py"}
    allowed |= {"docs", "mkdocs.yml", "CONTRIBUTING.md", "ARCHITECTURE.md", "SECURITY.md", "AGENTS.md"}
    assert {name for name in top if not name.startswith(".")} <= allowed


def test_every_dependency_has_a_range_that_holds_the_tested_version() -> None:
    """A fresh install takes no release of a kind that nobody has tried; constraints.txt has the versions of the suite."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").split())
    known = {canonicalize_name(name): version for name, version in tested.items()}
    required = [Requirement(text) for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]]
    for one in required:
        operators = {part.operator for part in one.specifier}
        assert operators & {"<", "==", "~="} and operators & {">=", "==", "~="}, f"{one}: no range"
        assert one.specifier.contains(known[canonicalize_name(one.name)]), f"{one}: constraints.txt is outside"


def test_what_tests_and_checks_import_of_each_other_is_there() -> None:
    """Programs that the suite does not run (tests/bench, check_*.py) break unseen where a name they import is renamed."""
    names: dict[str, set[str]] = {}
    imports: list[tuple[Path, ast.ImportFrom]] = []
    for path in (ROOT / "tests").rglob("*.py"):
        defined = names.setdefault(path.stem, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name):
                defined.add(node.id)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                defined.update((one.asname or one.name).partition(".")[0] for one in node.names)
                imports += [(path, node)] if isinstance(node, ast.ImportFrom) else []
    missing = [
        f"{path.relative_to(ROOT)}: {one.name} of {node.module}"
        for path, node in imports
        if node.module in names
        for one in node.names
        if one.name not in names[node.module]
    ]
    assert not missing


@pytest.mark.timeout(600)
def test_what_wheels_compile_needs_no_package_that_the_build_does_not_install(tmp_path: Path) -> None:
    """mypyc refuses every type error it reports: with the build's options there is none where only its needs are installed."""
    hook = (ROOT / "hatch_build.py").read_text("utf-8")
    options = re.findall(r'"([^"]+)"', re.search(r"^options = (\[.*\])$", hook, re.MULTILINE)[1])  # type: ignore[index]
    marked = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "evalpipe").rglob("*.py")
        if re.search(r"^# mypyc: compiled into wheels", path.read_text("utf-8"), re.MULTILINE)
    ]
    assert len(marked) > 20
    needs = tmp_path / "needs"
    needs.mkdir()
    for name in ("msgspec", "prometheus_client"):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None and name.replace("_", "-") in hook
        (needs / name).symlink_to(Path(spec.origin).parent)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--no-site-packages", "--cache-dir", str(tmp_path / "cache"), *marked],
        cwd=ROOT, env=os.environ | {"MYPYPATH": str(needs)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_index_accepts_a_release_that_names_a_stranger_s_address() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {"Documentation", "Repository", "Issues", "Changelog"} <= set(project["urls"])
    has_placeholder = any("OWNER" in address for address in project["urls"].values())
    assert ("Private :: Do Not Upload" in project["classifiers"]) == has_placeholder
