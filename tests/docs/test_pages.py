"""The pages for contributors: their code runs, their links and paths exist, and the table of levels is the imports'."""

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

import sinks
from sinks.cli.check import CheckCLI, arguments_of
from sinks.cli.training import command_line
from sinks.families import CausalLM
from sinks.observe import groups, summary
from sinks.report.ablation import SHAPES, VARIANT_SHAPES

ROOT = Path(__file__).parents[2]
EXECUTED = (
    "README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/python.md", "docs/own_variant.md",
    "docs/own_model.md", "docs/run_folder.md", "docs/loggers.md",
)  # fmt: skip
PAGES = ("README.md", "CONTRIBUTING.md", "kernels/README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")))
RECORDED = "experiments/results/backcopy-float32/runs/baseline/seed0"
every_page = pytest.mark.parametrize("page", PAGES)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> Iterator[tuple[int, str]]:
    """Line before each fenced block of a language, and the block."""
    text = text_of(page)
    for found in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield text[: found.start(1)].count("\n"), found.group(1)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in with a finished run, on the path; what a page registers is forgotten afterward."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / "runs/first/baseline").mkdir(parents=True)
    (tmp_path / "runs/first/baseline/seed0").symlink_to(ROOT / RECORDED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with mock.patch.dict(groups.GROUPS), mock.patch.dict(summary.SCALARS):
        yield tmp_path


def write_files(folder: Path, page: str) -> None:
    """Blocks that begin with the name of a file, as that file."""
    for language in ("python", "yaml"):
        for _, block in blocks(page, language):
            name = re.match(r"# (\S+\.(?:py|yaml))\n", block)
            if name:
                (folder / name.group(1)).write_text(block)


@pytest.mark.parametrize("page", EXECUTED)
def test_every_python_block_runs(page: str, reader: Path) -> None:
    names: dict[str, object] = {"__name__": "page"}
    executed = 0
    for line, block in blocks(page, "python"):
        # Empty lines put a traceback's numbers where the page has them.
        exec(compile("\n" * line + block, str(ROOT / page), "exec"), names)
        executed += 1
    assert executed


@every_page
def test_every_yaml_block_parses(page: str) -> None:
    for _, block in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(block), dict)


def test_the_variant_is_built_from_its_files(reader: Path) -> None:
    write_files(reader, "CONTRIBUTING.md")
    cli = command_line(arguments_of(["my_variant.yaml"]), run=False, cli=CheckCLI)
    assert isinstance(cli, CheckCLI)
    model = cli.build()
    assert isinstance(model, CausalLM)
    model.configure_model()
    used = {type(module).__name__ for module in model.modules()}
    assert {"Rectified", "ScalarNorm"} <= used


@every_page
def test_every_relative_link_resolves(page: str) -> None:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text_of(page), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    local = [t.split("#")[0] for t in targets if "://" not in t and not t.startswith("#")]
    assert [t for t in local if not (ROOT / page).parent.joinpath(t).exists()] == []


@every_page
def test_every_path_that_is_named_exists(page: str) -> None:
    named = set(
        re.findall(r"(?<![\w/.])(?:sinks|kernels|tests|benchmarks|experiments|docs)/[\w/.-]*\w/?", text_of(page))
    )
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


# -- levels ---------------------------------------------------------------------------------------------------------

SOURCES = {"sinks": ROOT / "sinks", "sink_kernels": ROOT / "kernels/sink_kernels", "benchmarks": ROOT / "benchmarks"}


def package_of(module: str) -> str | None:
    """The package of the table that a module belongs to; None for `sinks` itself and for others'."""
    first, *rest = module.split(".")
    if first == "sinks":
        return f"sinks.{rest[0]}" if rest and rest != ["__init__"] else None
    return first if first in SOURCES else None


def imported_by(file: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every import of a file, wherever it is."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def levels() -> dict[str, int]:
    """Package -> level, as docs/architecture.md has it."""
    rows = re.findall(r"^\| (\d+) \| `([\w.]+)` \|", text_of("docs/architecture.md"), re.MULTILINE)
    found = {package: int(level) for level, package in rows}
    assert len(found) == len(rows), "a package is in two rows"
    return found


def edges() -> Iterator[tuple[str, str, str]]:
    """Importing package, imported package, and where."""
    for top, folder in SOURCES.items():
        for file in sorted(folder.rglob("*.py")):
            own = package_of(".".join((top, *file.relative_to(folder).with_suffix("").parts)))
            for line, module in imported_by(file):
                other = package_of(module)
                if own is not None and other not in (None, own):
                    yield own, str(other), f"{file.relative_to(ROOT)}:{line}"


def test_the_table_of_levels_has_every_package_and_no_other() -> None:
    packages = {f"sinks.{file.stem}" for file in (ROOT / "sinks").glob("*.py")} - {"sinks.__init__"}
    packages |= {f"sinks.{init.parent.name}" for init in (ROOT / "sinks").glob("*/__init__.py")}
    assert set(levels()) == packages | {"sink_kernels", "benchmarks"}


def test_a_package_imports_only_packages_on_lower_levels() -> None:
    level = levels()
    upward = [f"{where}: {own} (level {level[own]}) imports {other} (level {level[other]})"
              for own, other, where in edges() if level[other] >= level[own]]  # fmt: skip
    assert upward == [], "move the import, or the row in docs/architecture.md"


def test_no_package_is_higher_than_its_imports_demand() -> None:
    level = levels()
    lowest = dict.fromkeys(level, 0)
    for own, other, _ in edges():
        lowest[own] = max(lowest[own], level[other] + 1)
    # Nothing is imported from the commands, the entry point and the benchmarks: they are on top wherever they could be.
    free = {"sinks.cli", "sinks.__main__", "benchmarks"}
    assert {p: lowest[p] for p in level if p not in free} == {p: n for p, n in level.items() if p not in free}


def test_every_fault_of_a_library_names_a_test_that_exists() -> None:
    rows = [line.split(" | ")[-1] for line in text_of("docs/upstream.md").splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    for cell in rows:
        file, _, name = re.sub(r"[`| ]", "", cell).partition("::")
        if file.startswith("tests/"):
            assert not name or f"def {name}(" in text_of(file), cell
        else:
            assert file == "makebench" or (ROOT / file).is_file(), cell


def test_every_entry_of_an_ablation_file_is_described() -> None:
    section = text_of("CONTRIBUTING.md").split("### An ablation\n")[1].split("\n## ")[0]
    assert {*SHAPES, *VARIANT_SHAPES} - set(re.findall(r"`([a-z_]+)`", section)) == set()


def test_figures_are_those_of_the_recorded_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    draw_figures = import_module("draw_figures")
    written = {file.name: file.read_text(encoding="utf-8") for file in (ROOT / "docs/figures").iterdir()}
    assert written == draw_figures.figures(), "run docs/draw_figures.py"


def test_the_readme_is_short_and_speaks_of_every_page() -> None:
    readme = text_of("README.md")
    assert len(readme.splitlines()) <= 150
    pages = {page for page in PAGES if page.startswith("docs/")} - {"docs/index.md"}
    assert pages - set(re.findall(r"\]\(([^)#]+)", readme)) == set()


def test_the_evidence_has_every_recorded_result() -> None:
    recorded = {folder.name for folder in (ROOT / "experiments/results").iterdir() if folder.is_dir()}
    assert recorded == set(re.findall(r"experiments/results/([\w-]+)", text_of("docs/evidence.md")))


def test_the_citation_is_valid() -> None:
    """What schema 1.2.0 of the Citation File Format asks for, and the version of the code."""
    citation = yaml.safe_load(text_of("CITATION.cff"))
    needed = {"cff-version", "message", "title", "authors"}
    offered = {"type", "version", "license", "keywords", "references"}
    assert needed <= set(citation) <= needed | offered
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["version"] == sinks.__version__ == project()["version"]
    assert citation["license"] == project()["license"]
    for cited in (citation, *citation["references"]):
        assert all(isinstance(cited[key], str) and cited[key] for key in ("title", "type"))
        assert cited["authors"]
        assert all({"name"} == set(a) or {"given-names", "family-names"} == set(a) for a in cited["authors"])
    assert "arXiv:2601.22966" in [i["value"] for r in citation["references"] for i in r["identifiers"]]


def project() -> dict[str, Any]:
    return tomllib.loads(text_of("pyproject.toml"))["project"]


def test_what_the_site_is_built_of_is_pinned() -> None:
    pinned = {line.split("==")[0].lower() for line in text_of("constraints.txt").splitlines() if "==" in line}
    asked = {re.split("[>=]", name)[0] for name in project()["optional-dependencies"]["docs"]}
    assert asked <= pinned
