"""The container files fit the tree. Building the images takes a container daemon, and is not done
here."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sysconfig
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

DOCKERFILES = ("server.Dockerfile", "engine.Dockerfile")
# Services of our own, and those that come as they are.
OWN = ("server", "engine", "engine-cpu")
HARDENED = (*OWN, "postgres")

PYTHON_IMAGE = re.compile(r"python:3\.\d+-slim-[a-z]+")
REQUIRED_VARIABLE = re.compile(r"\$\{(\w+):\?")


def _instructions(dockerfile: Path) -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line]


def _final_stage(instructions: list[tuple[str, str]]) -> list[tuple[str, str]]:
    last = max(i for i, (name, _) in enumerate(instructions) if name == "FROM")
    return instructions[last:]


def _variables(instructions: list[tuple[str, str]]) -> dict[str, str]:
    pairs = [pair for name, rest in instructions if name == "ENV" for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)


def _copied(instructions: list[tuple[str, str]]) -> list[str]:
    """What is copied from the tree."""
    copies = [rest.split() for name, rest in instructions if name == "COPY"]
    return [source for words in copies if "--from" not in words[0] for source in words[:-1]]


@pytest.fixture(params=DOCKERFILES)
def dockerfile(request: pytest.FixtureRequest, root: Path) -> Path:
    path: Path = root / "docker" / request.param
    return path


@pytest.fixture
def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    return _instructions(dockerfile)


@pytest.fixture
def compose(root: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((root / "docker" / "compose.yaml").read_text())
    return loaded


@pytest.fixture
def known_variables(root: Path) -> set[str]:
    page = (root / "docs" / "settings.md").read_text(encoding="utf-8")
    return set(re.findall(r"`(TRUNKLINE_\w+)`", page))


def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run(
        [str(hadolint), "--no-color", str(dockerfile)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_copied_exists_and_is_not_ignored(
    instructions: list[tuple[str, str]], root: Path
) -> None:
    sources = _copied(instructions)
    assert [source for source in sources if not (root / source).exists()] == []
    assert {"pyproject.toml", "src", "server", "store", "engine", "kernels"} <= set(sources)
    rules = (root / ".dockerignore").read_text().splitlines()
    ignored = {
        source: [rule for rule in rules if fnmatch(source, rule.lstrip("!"))][-1]
        for source in sources
    }
    assert all(rule.startswith("!") for rule in ignored.values()), ignored


def test_python_is_of_one_minor_version(root: Path) -> None:
    images = {
        rest.split()[0]
        for name in DOCKERFILES
        for instruction, rest in _instructions(root / "docker" / name)
        if instruction == "FROM" and ":" in rest
    }
    assert len(images) == 1
    assert PYTHON_IMAGE.fullmatch(images.pop())


def test_requirements_are_installed_before_the_source_is_copied(
    instructions: list[tuple[str, str]],
) -> None:
    order = [f"{name} {rest}" for name, rest in instructions]
    (requirements,) = [i for i, text in enumerate(order) if "--requirement" in text]
    (source,) = [i for i, text in enumerate(order) if text == "COPY server server"]
    (package,) = [i for i, text in enumerate(order) if "--no-deps" in text]
    assert requirements < source < package


@pytest.mark.parametrize(
    ("name", "extras"), [("server.Dockerfile", []), ("engine.Dockerfile", ["engine"])]
)
def test_only_the_engine_installs_torch(name: str, extras: list[str], root: Path) -> None:
    makers = [
        rest.partition(">")[0].split()
        for instruction, rest in _instructions(root / "docker" / name)
        if instruction == "RUN" and "requirements.py" in rest
    ]
    assert makers == [["python", "requirements.py", "pyproject.toml", *extras]]
    requirements = runpy.run_path(str(root / "docker" / "requirements.py"))["requirements"]
    lines = requirements(root / "pyproject.toml", *extras)
    assert any(line.startswith("fastapi") for line in lines)
    assert any(line.startswith("torch") for line in lines) == bool(extras)


def test_image_needs_no_root(instructions: list[tuple[str, str]]) -> None:
    names = [name for name, _ in instructions]
    assert names.index("USER") < names.index("ENTRYPOINT")
    # Kubernetes must see that it is not 0.
    assert ("USER", "10001:10001") in instructions
    assert "pip" not in " ".join(r for n, r in _final_stage(instructions) if n == "RUN")


def test_image_has_labels_and_a_health_check(instructions: list[tuple[str, str]]) -> None:
    final = dict(_final_stage(instructions))
    for label in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in final["LABEL"]
    check = final["HEALTHCHECK"]
    assert json.loads(check[check.index("CMD") + len("CMD") :])[0] == "python"


def test_variables_of_images_are_settings(
    instructions: list[tuple[str, str]], known_variables: set[str]
) -> None:
    variables = _variables(instructions)
    assert {v for v in variables if v.startswith("TRUNKLINE_")} <= known_variables
    assert "TRUNKLINE_DATA_DIR" in variables


def test_caches_are_in_a_volume(root: Path) -> None:
    final = _final_stage(_instructions(root / "docker" / "engine.Dockerfile"))
    volumes = json.loads(dict(final)["VOLUME"])
    caches = {n: v for n, v in _variables(final).items() if re.search("CACHE|_HOME", n)}
    assert {"TRUNKLINE_CACHE_DIR", "TRITON_CACHE_DIR", "HF_HOME"} <= set(caches)
    assert all(path.startswith(tuple(volumes)) for path in caches.values()), caches


def test_engine_image_has_what_kernels_are_compiled_with(root: Path) -> None:
    final = _final_stage(_instructions(root / "docker" / "engine.Dockerfile"))
    installed = [rest for name, rest in final if name == "RUN" and "apt-get install" in rest]
    assert len(installed) == 1
    assert "g++" in installed[0].split()


def test_services_are_built_from_these_files(compose: dict[str, Any], root: Path) -> None:
    built = {
        name: (root / "docker" / service["build"]["context"]).resolve()
        / service["build"]["dockerfile"]
        for name, service in compose["services"].items()
        if "build" in service
    }
    assert built == {
        name: root / "docker" / f"{name.removesuffix('-cpu')}.Dockerfile" for name in OWN
    }


@pytest.mark.parametrize("name", HARDENED)
def test_services_have_few_rights(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert any(mount.split(":")[0] == "/tmp" for mount in service["tmpfs"])


def test_engines_differ_in_the_device_only(compose: dict[str, Any]) -> None:
    on_gpu, on_cpu = compose["services"]["engine"], compose["services"]["engine-cpu"]
    special = {"profiles", "deploy"}
    assert on_gpu.keys() - special == on_cpu.keys() - special
    assert all(on_gpu[key] == on_cpu[key] for key in on_cpu.keys() - special)
    (device,) = on_gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert "deploy" not in on_cpu


def test_engine_only_reads_the_files(compose: dict[str, Any]) -> None:
    assert "data:/data:ro" in compose["services"]["engine"]["volumes"]
    assert "data:/data" in compose["services"]["server"]["volumes"]


def test_variables_of_services_are_settings(
    compose: dict[str, Any], known_variables: set[str]
) -> None:
    for name in OWN:
        variables = compose["services"][name]["environment"]
        assert {v for v in variables if v.startswith("TRUNKLINE_")} <= known_variables


def test_volumes_and_networks_are_declared(compose: dict[str, Any]) -> None:
    services = compose["services"].values()
    used = {volume.split(":")[0] for service in services for volume in service["volumes"]}
    assert used == set(compose["volumes"])
    assert {n for service in services for n in service["networks"]} == set(compose["networks"])


def test_only_the_server_is_published_and_on_this_machine(compose: dict[str, Any]) -> None:
    published = {n: s["ports"] for n, s in compose["services"].items() if "ports" in s}
    assert published == {"server": ["${TRUNKLINE_PUBLISH:-127.0.0.1:8000}:8000"]}


def test_example_has_what_must_be_set(root: Path) -> None:
    example = (root / "docker" / ".env.example").read_text()
    required = set(REQUIRED_VARIABLE.findall((root / "docker" / "compose.yaml").read_text()))
    assert required == {
        "POSTGRES_PASSWORD",
        "TRUNKLINE_MODEL",
        "TRUNKLINE_SERVED_MODEL_NAME",
    }
    assert required <= set(re.findall(r"^(\w+)=", example, re.MULTILINE))
    # A password in the example would be somebody's password.
    assert re.search(r"^POSTGRES_PASSWORD=$", example, re.MULTILINE)
