"""Clients that others have written, each in an environment of its own, made once for a lock.

`make clients` makes those that are missing. A lock names every package of an environment; its first
line says what was wanted. `python -m tests.clients.environments --lock NAME` resolves that anew and
writes the lock; for openai-npm, run `npm install --package-lock-only` in its folder.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import cache_dir, missing

LOCKS = Path(__file__).parent / "locks"
PYTHON_CLIENTS = ("litellm", "lm-eval", "openai-batch")
NPM_CLIENT = "openai-npm"
WANTED = "# wanted: "
COMPLETE = "complete"  # a file that is written last


def python_with(name: str) -> Path:
    """The interpreter of the environment of a Python client. Skips where it was not made."""
    return _complete(_folder(name)) / "bin" / "python"


def npm_folder() -> Path:
    """The folder whose `node_modules` has the npm client. Skips where it was not made."""
    if shutil.which("node") is None:
        missing("Node.js is not installed")
    return _complete(_folder(NPM_CLIENT))


def _complete(folder: Path) -> Path:
    if not (folder / COMPLETE).exists():
        missing("the clients of others are not installed; `make clients` installs them")
    return folder


def _folder(name: str) -> Path:
    """Named by the lock and by what it was installed with."""
    lock = LOCKS / name / "package-lock.json" if name == NPM_CLIENT else LOCKS / f"{name}.txt"
    made_with = "node" if name == NPM_CLIENT else sys.version
    digest = hashlib.sha256(lock.read_bytes() + made_with.encode()).hexdigest()[:12]
    return cache_dir() / "clients" / f"{name}-{digest}"


def make(name: str) -> None:
    """Install a client, unless it is there already.

    Raises:
        subprocess.CalledProcessError: the package manager failed, and has said why.
        FileNotFoundError: there is no package manager.
    """
    folder = _folder(name)
    with _lock(folder.with_suffix(".lock")):
        if (folder / COMPLETE).exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        if name == NPM_CLIENT:
            shutil.copytree(LOCKS / name, folder)
            command = ["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"]
            subprocess.run(command, cwd=folder, check=True)
        else:
            python = _new_environment(folder)
            _pip(python, "--no-deps", "--requirement", LOCKS / f"{name}.txt")
        (folder / COMPLETE).touch()


def lock(name: str) -> None:
    """Resolve what a Python client wants, and write its lock."""
    path = LOCKS / f"{name}.txt"
    first = path.read_text(encoding="ascii").splitlines()[0]
    with tempfile.TemporaryDirectory() as scratch:
        python = _new_environment(Path(scratch))
        _pip(python, *first.removeprefix(WANTED).split())
        command = [python, "-m", "pip", "freeze"]
        frozen = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    path.write_text(f"{first}\n{frozen}", encoding="ascii")


def _new_environment(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder / "bin" / "python"


def _pip(python: Path, *arguments: str | Path) -> None:
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *arguments], check=True)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Two that make the same at once: one waits for the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lock", choices=PYTHON_CLIENTS, help="write the lock of a client anew")
    arguments = parser.parse_args()
    if arguments.lock:
        lock(arguments.lock)
        return
    for name in (*PYTHON_CLIENTS, NPM_CLIENT):
        try:
            make(name)
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            # The tests that need it are skipped, or fail in continuous integration.
            print(f"{name} is not installed: {error}", file=sys.stderr)  # noqa: T201  # a program


if __name__ == "__main__":
    main()
