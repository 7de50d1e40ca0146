"""Who imports whom, and when."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

# The engine's pure core: plain Python and numpy, tested without a model.
PURE_CORE = ("sequence", "prefix_tree", "planner", "block_pool", "scheduler", "step_plan")

# What the server's container has no torch for: every module of the parts that must do without.
WITHOUT_TORCH = """
import importlib, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "triton", "transformers"}:
            raise ImportError(f"{name} is imported")

sys.meta_path.insert(0, Refuse())
modules = ["trunkline.__main__", *(f"trunkline.engine.{name}" for name in sys.argv[1:])]
for part in ("trunkline.server", "trunkline.store"):
    package = importlib.import_module(part)
    modules += [m.name for m in pkgutil.walk_packages(package.__path__, f"{part}.")]
for module in modules:
    importlib.import_module(module)
print(len(modules))
"""

# Function-level imports, each with the reason why it is not at the top of the file.
LATE_IMPORTS = {
    (
        "benchmarks/peers/vllm_gpu.py",
        "peers.vllm_engine",
    ): "vLLM prints when it is imported, which must not be taken for a reply",
    ("engine/cli.py", "trunkline.engine.service"): "torch; --help must be quick",
    ("engine/cli.py", "trunkline.engine.offline"): "torch; --help must be quick",
    ("engine/cli.py", "trunkline.engine.icicle"): "Pillow, which the server has not",
    ("kernels/dispatch.py", "trunkline.kernels.gpu"): "Triton, which some platforms have not",
    (
        "server/cli.py",
        "trunkline.server.demo.run",
    ): "the official client; no other command needs it",
    ("src/trunkline/tracing.py", "trunkline.trace_export"): "the extra `otel`",
    (
        "server/client/commands.py",
        "trunkline.server.client.actions",
    ): "HTTP client and tables; --help must be quick",
}

# Names that say nothing about what is inside.
VAGUE_NAMES = frozenset({"utils", "util", "common", "helpers", "misc"})


def test_import_contracts_hold(root: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Contracts: " in result.stdout


def test_server_store_and_pure_core_do_without_torch() -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *PURE_CORE],
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > len(PURE_CORE) + 10


def test_late_imports_are_listed(package_sources: list[Path], root: Path) -> None:
    found = {
        (str(path.relative_to(root)), module)
        for path in package_sources
        for module in _late_imports(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == set(LATE_IMPORTS)


def test_no_import_is_for_type_checkers_only(package_sources: list[Path], root: Path) -> None:
    guarded = [
        str(path.relative_to(root))
        for path in package_sources
        if any(
            isinstance(node, ast.Name | ast.Attribute) and "TYPE_CHECKING" in ast.unparse(node)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
    ]
    assert guarded == []


def test_modules_have_names_that_say_something(package_sources: list[Path], root: Path) -> None:
    vague = [
        str(path.relative_to(root))
        for path in package_sources
        if VAGUE_NAMES & {path.stem, path.parent.name}
    ]
    assert vague == []


def _late_imports(tree: ast.Module) -> set[str]:
    modules: set[str] = set()
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.ImportFrom):
                modules.add(node.module or ".")
            elif isinstance(node, ast.Import):
                modules.update(name.name for name in node.names)
    return modules
