"""The container files fit the tree. Building the images takes a network and is not done here."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

DOCKERFILES = ("server.Dockerfile", "engine.Dockerfile")


def _instructions(dockerfile: Path) -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line]


@pytest.fixture(params=DOCKERFILES)
def instructions(request: pytest.FixtureRequest, root: Path) -> list[tuple[str, str]]:
    return _instructions(root / "docker" / request.param)


@pytest.fixture
def compose(root: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((root / "docker" / "compose.yaml").read_text())
    return loaded


@pytest.fixture
def known_variables(root: Path) -> set[str]:
    page = (root / "docs" / "settings.md").read_text(encoding="utf-8")
    return set(re.findall(r"`(TRUNKLINE_\w+)`", page))


def test_what_is_copied_exists(instructions: list[tuple[str, str]], root: Path) -> None:
    sources = [s for name, rest in instructions if name == "COPY" for s in rest.split()[:-1]]
    assert [source for source in sources if not (root / source).exists()] == []
    assert {"pyproject.toml", "src", "server", "store", "engine", "kernels"} <= set(sources)


def test_runs_as_a_user_and_has_a_health_check(instructions: list[tuple[str, str]]) -> None:
    names = [name for name, _ in instructions]
    assert ("USER", "trunkline") in instructions
    assert names.index("USER") < names.index("ENTRYPOINT")
    check = dict(instructions)["HEALTHCHECK"]
    assert json.loads(check[check.index("CMD") + len("CMD") :])[0] == "python"


def test_server_image_has_no_torch(root: Path) -> None:
    installs = [
        rest
        for name, rest in _instructions(root / "docker" / "server.Dockerfile")
        if name == "RUN" and "pip install" in rest
    ]
    assert len(installs) == 1
    assert "engine" not in installs[0]


def test_variables_of_images_are_settings(
    instructions: list[tuple[str, str]], known_variables: set[str]
) -> None:
    pairs = [pair for name, rest in instructions if name == "ENV" for pair in shlex.split(rest)]
    variables = {pair.split("=")[0] for pair in pairs}
    assert {v for v in variables if v.startswith("TRUNKLINE_")} <= known_variables
    assert "TRUNKLINE_DATA_DIR" in variables


def test_services_are_built_from_these_files(compose: dict[str, Any], root: Path) -> None:
    built = {
        name: (root / "docker" / service["build"]["context"]).resolve()
        / service["build"]["dockerfile"]
        for name, service in compose["services"].items()
        if "build" in service
    }
    assert built == {name: root / "docker" / f"{name}.Dockerfile" for name in ("server", "engine")}


def test_variables_of_services_are_settings(
    compose: dict[str, Any], known_variables: set[str]
) -> None:
    for name in ("server", "engine"):
        assert set(compose["services"][name]["environment"]) <= known_variables


def test_volumes_of_services_are_declared(compose: dict[str, Any]) -> None:
    used = {
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service["volumes"]
    }
    assert used == set(compose["volumes"])
