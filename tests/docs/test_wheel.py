"""The wheel, built and used outside the repository."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import sinks

ROOT = Path(__file__).parents[2]
SMALL = [
    "--model=Baseline", "--model.architecture={d_model: 16, n_layers: 1, n_heads: 1, ffn_hidden: 16}",
    "--data=Backcopy", "--data.context_length=8", "--data.batch_size=2", "--data.validation_rows=4",
    "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.max_steps=2", "--trainer.val_check_interval=2",
    "--run.dir=run",
]  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what is packaged, so that nothing is left in the repository."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("sinks", "kernels"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=skipped)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / "source")
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    build = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(folder), str(folder / "source")]
    subprocess.run(build, check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_template(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    for top, base in (("sinks", ROOT), ("sink_kernels", ROOT / "kernels")):
        files = [f for f in (base / top).rglob("*") if f.is_file() and "__pycache__" not in f.parts]
        assert {str(file.relative_to(base)) for file in files} - held == set()
    assert {name.split("/")[0] for name in held if ".dist-info/" not in name} == {"sinks", "sink_kernels"}


@pytest.mark.slow
def test_the_wheel_works_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    packages = next(home.glob("lib/python*/site-packages"))
    # What it depends on, without the editable install there: path files in an added folder are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    install = [sys.executable, "-m", "pip", "--python", str(home / "bin/python"), "install", *options, str(wheel)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    subprocess.run(install, env=environment, check=True)

    def run(*command: str) -> str:
        program = str(home / "bin" / command[0])
        done = subprocess.run([program, *command[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run("python", "-c", "import sinks, sink_kernels; print(sinks.__file__, sink_kernels.__file__)")
    assert all(path.startswith(str(packages)) for path in where.split())
    assert sinks.__version__ in run("sinks", "--version")
    assert "Example:" in run("sinks", "fit", "--help")
    run("sinks", "fit", *SMALL)
    run("sinks", "report", "run")
    assert (tmp_path / "run/report.html").is_file()
    summary = "import sinks; print(sinks.RunFolder('run').summary()['steps'], sinks.Reader, sinks.check)"
    assert run("python", "-c", summary).startswith("2 ")
