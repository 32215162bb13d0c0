"""The five packages are ours and no more than they are shipped.

`daemon` and `config` are common names: PyPI's python-daemon installs a `daemon` too. So the tests ask Python
which file each name stands for, in this process and in a fresh one, and look into a wheel that they build.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ["config", "daemon", "pipeline", "scheduler", "spool"]


@pytest.mark.parametrize("name", PACKAGES)
def test_each_name_resolves_inside_this_repository(name: str) -> None:
    """`import name` means the folder of that name in this tree, with an `__init__.py`."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None, f"{name} is a namespace package: its __init__.py is missing"
    assert Path(spec.origin) == ROOT / name / "__init__.py"


@pytest.mark.parametrize("name", PACKAGES)
def test_each_name_resolves_inside_this_repository_from_anywhere(name: str, tmp_path: Path) -> None:
    """A process started in another folder, as Ray starts its workers, finds this tree's package as well."""
    program = f"import importlib.util; print(importlib.util.find_spec({name!r}).origin)"
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert Path(ran.stdout.strip()) == ROOT / name / "__init__.py"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """A wheel of this tree, built from a copy so that no build folder is left here."""
    source = tmp_path_factory.mktemp("source")
    for name in [*PACKAGES, "tests", "examples"]:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ["pyproject.toml", "README.md"]:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-qq", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "--wheel-dir", str(target), str(source)]
    subprocess.run(command, timeout=100, check=True)
    (built,) = target.glob("batchd-*.whl")
    return zipfile.Path(built)


def test_the_wheel_ships_just_the_five_packages(wheel: zipfile.Path) -> None:
    """At the wheel's top stand the five packages and its own metadata, nothing else."""
    names = {path.name for path in wheel.iterdir()}
    assert {name for name in names if not name.endswith(".dist-info")} == set(PACKAGES)


def test_the_wheel_ships_every_module_and_the_settings(wheel: zipfile.Path) -> None:
    """Each Python file of the five packages is in it, and the default YAML files of config."""
    here = {path.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    here |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "config").glob("*.yaml")}
    assert here
    shipped = {name for name in wheel.root.namelist() if not name.endswith("/")}
    assert {name for name in shipped if ".dist-info/" not in name} == here


def test_the_wheel_brings_the_command(wheel: zipfile.Path) -> None:
    """Installing it gives the command `batchd`."""
    (info,) = [path for path in wheel.iterdir() if path.name.endswith(".dist-info")]
    assert "batchd = daemon.main:main" in (info / "entry_points.txt").read_text(encoding="utf-8")
