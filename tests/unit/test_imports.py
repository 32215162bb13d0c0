"""Who may import whom: the table of the design, read from the source with `ast`.

Imports inside functions and `if TYPE_CHECKING` count too, so that no rule can be put off. Each check takes a
folder, and the last tests here run it on bad trees: a check that cannot fail proves nothing.

Limits: an import by a name that is computed at run time is not seen.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ALLOWED = {
    "config": set(),
    "spool": set(),
    "scheduler": {"config", "spool"},
    "pipeline": {"config", "spool"},
    "daemon": {"config", "spool", "scheduler", "pipeline"},
}
NEVER = {"tests", "examples", "benchmarks", "docs"}  # beside the packages, and not in the wheel

# Slow to import (ray 1 s, vllm 8 s), so only pipeline has them, and only once work starts.
HEAVY = {"ray", "vllm", "torch", "transformers"}

# These may import HEAVY at module level, because they are themselves imported inside functions only.
DEFERRED_MODULES = {
    "pipeline/vllm_engine.py",
    "pipeline/replica.py",
    "pipeline/data.py",
    "pipeline/calls.py",
}

# vLLM's internals change with each release: whoever reads these files has read all that depends on them.
VLLM_MODULES = ("pipeline/vllm_engine.py", "pipeline/vllm_processes.py")
# Counts tokens with a model's own tokenizer, whose interface is stable, where no engine runs.
TOKENIZER_MODULE = "pipeline/forecast.py"

# scheduler is values in, decision out: no file, no clock, no thread.
SCHEDULER_NEVER = {
    "asyncio",
    "datetime",
    "io",
    "multiprocessing",
    "os",
    "pathlib",
    "shutil",
    "socket",
    "subprocess",
}
SCHEDULER_NEVER |= {"tempfile", "threading", "time"}


class When(Enum):
    """When an import runs."""

    LOAD = auto()  # as soon as its module is imported
    DEFERRED = auto()  # when a function is called
    TYPING = auto()  # never: mypy alone reads it


@dataclass(frozen=True)
class Import:
    """One import: `module` is the full name of what it loads, `path` and `line` say where it stands."""

    path: str
    line: int
    module: str
    when: When

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.module}"

    @property
    def importer(self) -> str:
        """The package that the import stands in."""
        return self.path.split("/")[0]

    @property
    def package(self) -> str:
        """The package that the import reaches into."""
        return self.module.split(".")[0]


class _Collector(ast.NodeVisitor):
    """Collects the imports of one file and when each of them runs."""

    def __init__(self, path: str, modules: dict[str, str]) -> None:
        self.path = path
        self.modules = modules
        self.when = When.LOAD
        self.found: list[Import] = []

    def _add(self, node: ast.AST, module: str) -> None:
        self.found.append(Import(self.path, getattr(node, "lineno", 0), module, self.when))

    def _visit_all(self, nodes: list[ast.stmt], when: When) -> None:
        before, self.when = self.when, when
        for node in nodes:
            self.visit(node)
        self.when = before

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        package = Path(self.path).parent.parts
        parents = package[: len(package) - node.level + 1] if node.level else ()
        base = ".".join([*parents, *([node.module] if node.module else [])])
        for alias in (
            node.names
        ):  # `from spool import record` loads spool.record; `from spool.record import Record` too
            inner = f"{base}.{alias.name}"
            self._add(node, inner if inner in self.modules else base)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
            self._add(node, str(node.args[0].value))
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._visit_all(node.body, When.DEFERRED)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815  # the name is ast's

    def visit_If(self, node: ast.If) -> None:
        typing_only = ast.unparse(node.test).split(".")[-1] == "TYPE_CHECKING"
        self._visit_all(node.body, When.TYPING if typing_only else self.when)
        self._visit_all(node.orelse, self.when)


def read_modules(root: Path) -> dict[str, str]:
    """Each module of the five packages: its full name, and its path in the tree."""
    paths = [path.relative_to(root) for package in ALLOWED for path in sorted((root / package).rglob("*.py"))]
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path.as_posix() for path in paths}


def read_imports(root: Path) -> list[Import]:
    """Every import of the five packages."""
    modules = read_modules(root)
    found = []
    for path in modules.values():
        collector = _Collector(path, modules)
        collector.visit(ast.parse((root / path).read_text(encoding="utf-8"), path))
        found += collector.found
    return found


def check_table(root: Path) -> list[str]:
    """Imports that the table of packages does not allow."""
    wrong = []
    for found in read_imports(root):
        others = (set(ALLOWED) | NEVER) - {found.importer}
        if found.package in others - ALLOWED[found.importer]:
            wrong.append(f"{found}: {found.importer} may not")
        if found.importer == "scheduler" and found.package in SCHEDULER_NEVER:
            wrong.append(f"{found}: scheduler has no file, no clock and no thread")
    return wrong


def check_heavy(root: Path) -> list[str]:
    """Imports that would load ray, vllm or torch outside pipeline, or before work starts."""
    modules = read_modules(root)
    wrong = []
    for found in read_imports(root):
        at_load = found.when is When.LOAD and found.path not in DEFERRED_MODULES
        if found.package in HEAVY and found.importer != "pipeline":
            wrong.append(f"{found}: only pipeline may")
        elif found.package in HEAVY and at_load:
            wrong.append(f"{found}: only inside a function")
        elif modules.get(found.module) in DEFERRED_MODULES and at_load:
            wrong.append(f"{found}: only inside a function, because that module imports heavy ones")
    return wrong


def check_vllm(root: Path) -> list[str]:
    """Imports of vLLM, or of what it brings, in any other file than those for it."""
    may = {(module, package) for module in VLLM_MODULES for package in HEAVY}
    may.add((TOKENIZER_MODULE, "transformers"))
    found = (each for each in read_imports(root) if each.package in HEAVY - {"ray"})
    return [
        f"{each}: only {' and '.join(VLLM_MODULES)} may"
        for each in found
        if (each.path, each.package) not in may
    ]


def check_cycles(root: Path) -> list[str]:
    """Circles of modules that import each other, whenever those imports run."""
    graph: dict[str, set[str]] = {module: set() for module in read_modules(root)}
    names = {path: module for module, path in read_modules(root).items()}
    for found in read_imports(root):
        if found.module in graph:
            graph[names[found.path]].add(found.module)
    circles: list[str] = []
    done: set[str] = set()

    def walk(module: str, trail: list[str]) -> None:
        if module in trail:
            circles.append(" -> ".join([*trail[trail.index(module) :], module]))
        elif module not in done:
            for target in sorted(graph[module]):
                walk(target, [*trail, module])
            done.add(module)

    for module in sorted(graph):
        walk(module, [])
    return circles


def test_packages_import_only_what_the_table_allows() -> None:
    """daemon knows everyone, pipeline and scheduler never meet, spool and config know nobody."""
    assert check_table(ROOT) == []


def test_heavy_imports_wait_until_work_starts() -> None:
    """ray, vllm, torch and transformers are imported by pipeline alone, inside functions."""
    assert check_heavy(ROOT) == []


def test_two_files_touch_vllm() -> None:
    """The one that checks its version, and the one that starts its processes."""
    assert check_vllm(ROOT) == []


def test_no_modules_import_each_other() -> None:
    """There is no cycle, and none is hidden in a function or a TYPE_CHECKING block."""
    assert check_cycles(ROOT) == []


def test_every_package_is_read() -> None:
    """The checks above look at all five packages, and the list of exceptions names files that exist."""
    modules = read_modules(ROOT)
    assert {module.split(".")[0] for module in modules} == set(ALLOWED)
    assert set(modules.values()) >= DEFERRED_MODULES


HELP = f"""
import runpy, sys, time
sys.argv = ["batchd", "--help"]
try:
    runpy.run_module("daemon.main", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print("heavy:", sorted({HEAVY!r} & sys.modules.keys()))
print("cpu_s:", time.process_time())
"""


def test_help_starts_fast_and_loads_no_engine() -> None:
    """`batchd --help` takes under two seconds of processor time and loads neither ray nor vllm nor torch."""
    ran = subprocess.run(
        [sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    *shown, heavy, cpu_s = ran.stdout.splitlines()
    assert "usage" in "\n".join(shown).lower()
    assert heavy == "heavy: []"
    # Processor time, not the clock: a busy machine makes everything slow, but it makes no import larger.
    assert float(cpu_s.split()[1]) < 2.0


def _tree(root: Path, files: dict[str, str]) -> Path:
    for package in ALLOWED:
        (root / package).mkdir()
        (root / package / "__init__.py").write_text("")
    for path, text in files.items():
        (root / path).write_text(text)
    return root


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("spool/store.py", "import config\n"),
        ("scheduler/policy.py", "from pipeline import run\n"),
        ("pipeline/run.py", "def go():\n    import scheduler.policy\n"),
        ("pipeline/run.py", "async def go():\n    from daemon import logs\n"),
        (
            "config/load.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from spool import job\n",
        ),
        ("spool/store.py", "import importlib\nimportlib.import_module('daemon.main')\n"),
        ("spool/store.py", "try:\n    from tests import fake\nexcept ImportError:\n    pass\n"),
        ("scheduler/policy.py", "class Clock:\n    from time import monotonic\n"),
        ("pipeline/run.py", "from ..scheduler import policy\n"),
    ],
)
def test_the_table_check_can_fail(tmp_path: Path, path: str, text: str) -> None:
    """Each way to break the table is found."""
    assert check_table(_tree(tmp_path, {path: text})) != []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("pipeline/run.py", "import ray.data\n"),
        ("pipeline/run.py", "if True:\n    from vllm import LLM\n"),
        ("daemon/main.py", "def main():\n    import torch\n"),
        ("pipeline/run.py", "from pipeline import data\n"),
        ("pipeline/run.py", "from pipeline.data import Source\n"),
        ("daemon/main.py", "import pipeline.data\n"),
    ],
)
def test_the_heavy_check_can_fail(tmp_path: Path, path: str, text: str) -> None:
    """Each way to load an engine too early is found, through a module that may import one as well."""
    tree = _tree(tmp_path, {"pipeline/data.py": "import ray\nclass Source: ...\n", path: text})
    assert check_heavy(tree) != []


def test_the_vllm_check_can_fail(tmp_path: Path) -> None:
    """An import inside a function of another file is found."""
    assert check_vllm(_tree(tmp_path, {"pipeline/replica.py": "def go():\n    from vllm import LLM\n"})) != []


@pytest.mark.parametrize("put_off", ["{}", "def go():\n    {}", "if TYPE_CHECKING:\n    {}"])
def test_the_cycle_check_can_fail(tmp_path: Path, put_off: str) -> None:
    """A cycle is found at load time, inside a function and inside TYPE_CHECKING."""
    tree = _tree(
        tmp_path,
        {
            "spool/job.py": "from spool import store\n",
            "spool/store.py": "import spool.paths\n",
            "spool/paths.py": put_off.format("from spool.job import Job") + "\n",
        },
    )
    assert check_cycles(tree) == ["spool.job -> spool.store -> spool.paths -> spool.job"]


def test_a_good_tree_passes(tmp_path: Path) -> None:
    """What the table allows is not reported."""
    tree = _tree(
        tmp_path,
        {
            "spool/job.py": "import os\nimport pydantic\n",
            "scheduler/policy.py": "from spool import job\nfrom config import settings\n",
            "pipeline/data.py": "import ray\nfrom pipeline import replica\nfrom spool.job import Job\n",
            "pipeline/replica.py": "import ray\ndef start():\n    from pipeline import vllm_engine\n",
            "pipeline/vllm_engine.py": "def start():\n    import vllm\n",
            "pipeline/run.py": "def go():\n    from pipeline import data\n",
            "daemon/main.py": "from pipeline import run\nfrom scheduler import policy\n",
        },
    )
    assert check_table(tree) + check_heavy(tree) + check_vllm(tree) + check_cycles(tree) == []
