"""What a bare GPU machine can import, and what the distribution ships."""

import ast
import re
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

import sinks

ROOT = Path(__file__).parents[1]
ABSENT = ["litdata", "jsonargparse", "omegaconf", "pyarrow"]
BLOCK = f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r}))"


@pytest.mark.parametrize(
    "module",
    [
        "sinks.models.decoder",
        "sinks.families",
        "sinks.observe",
        "sinks.checks",
        "sinks.runs",
        "sinks.plan.plan",
        "sink_kernels",
    ],
)
def test_imports_with_torch_lightning_torchmetrics_and_numpy_alone(module: str) -> None:
    subprocess.run([sys.executable, "-c", f"{BLOCK}\nimport {module}"], check=True)


def test_sink_kernels_imports_nothing_of_sinks_and_no_triton_until_asked() -> None:
    code = "import sys, sink_kernels; assert not [m for m in sys.modules if m.split('.')[0] in ('sinks', 'triton')]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_comes_within_a_second_and_without_torch() -> None:
    code = "import sys; from sinks.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.perf_counter() - start < 1


def test_sinks_imports_nothing_until_a_name_is_asked_for() -> None:
    code = "import sys, sinks; dir(sinks); assert 'torch' not in sys.modules; assert callable(sinks.check)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_of_sinks_is_that_of_the_module_a_type_checker_reads() -> None:
    tree = ast.parse(Path(sinks.__file__).read_text(encoding="utf-8"))
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    modules = {a.name: node.module for node in typed.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert {"__version__", *modules} == set(sinks.__all__)
    assert set(sinks.__all__) <= set(dir(sinks))
    for name, module in modules.items():
        assert getattr(sinks, name) is getattr(import_module(str(module)), name)
    with pytest.raises(AttributeError, match="has no attribute 'Gatde'"):
        sinks.Gatde  # noqa: B018


def test_a_built_wheel_holds_both_packages(tmp_path: Path) -> None:
    import zipfile

    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    expected = {"sinks/cli/__init__.py", "sinks/py.typed", "sinks/report/report.html.j2", "sink_kernels/py.typed"}
    assert expected | {"sinks/interop/modeling_sinks.py"} <= set(names)
    assert not [n for n in names if n.startswith(("tests", "kernels", "experiments", "benchmarks"))]


def test_nothing_that_is_shipped_imports_what_is_not() -> None:
    shipped = [*(ROOT / "sinks").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    of_others = re.compile(r"^\s*(from|import) (benchmarks|tests)\b", re.MULTILINE)
    assert not [file for file in shipped if of_others.search(file.read_text(encoding="utf-8"))]


def test_kernel_benchmarks_import_nothing_of_sinks() -> None:
    """The oldest supported torch and a bare GPU machine check the kernels without the suite's dependencies."""
    modules = [f"benchmarks.kernels.{file.stem}" for file in (ROOT / "benchmarks" / "kernels").glob("[a-z]*.py")]
    code = f"import sys, {', '.join(modules)}; assert not [m for m in sys.modules if m.split('.')[0] == 'sinks']"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
