"""The manifests are valid and fit the images and settings. No cluster runs them here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

VERSIONS = ("1.30", "1.34")

# Not among the kustomization's resources, each with the reason.
NOT_APPLIED = {
    "secret.example.yaml": "secrets come from elsewhere",
    "service-monitor.yaml": "needs the Prometheus operator",
}
# Kinds whose schemas are not the API's own.
FOREIGN = frozenset({"ServiceMonitor"})
WORKLOADS = ("trunkline-server", "trunkline-engine", "trunkline-admin")


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    return root / "deploy" / "kubernetes"


@pytest.fixture(scope="module")
def kustomization(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((folder / "kustomization.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def manifests(folder: Path) -> list[dict[str, Any]]:
    """All objects, also those that are not applied by default."""
    return [
        document
        for path in sorted(folder.glob("*.yaml"))
        if path.name != "kustomization.yaml"
        for document in yaml.safe_load_all(path.read_text())
    ]


@pytest.fixture(scope="module")
def workloads(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Pod specifications by the name of what makes the pods."""
    kinds = ("Deployment", "StatefulSet")
    return {
        m["metadata"]["name"]: m["spec"]["template"]["spec"]
        for m in manifests
        if m["kind"] in kinds
    }


def _containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def _main(pod: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = pod["containers"][0]
    return container


def _settings(kustomization: dict[str, Any]) -> dict[str, str]:
    (generated,) = kustomization["configMapGenerator"]
    assert generated["name"] == "trunkline-settings"
    return dict(literal.split("=", 1) for literal in generated["literals"])


def test_every_file_is_applied_or_has_a_reason(folder: Path, kustomization: dict[str, Any]) -> None:
    files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == set(kustomization["resources"]) | set(NOT_APPLIED)


@pytest.mark.parametrize("version", VERSIONS)
def test_schemas_hold(manifests: list[dict[str, Any]], version: str) -> None:
    for manifest in manifests:
        if manifest["kind"] not in FOREIGN:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_a_wrong_manifest_is_noticed() -> None:
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"port": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_namespace_is_the_overlays(
    manifests: list[dict[str, Any]], kustomization: dict[str, Any]
) -> None:
    assert "namespace" not in kustomization
    assert [m["metadata"]["name"] for m in manifests if "namespace" in m["metadata"]] == []


@pytest.mark.parametrize("name", WORKLOADS)
def test_pods_are_restricted(workloads: dict[str, dict[str, Any]], name: str) -> None:
    pod = workloads[name]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in _containers(pod):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])


@pytest.mark.parametrize("name", WORKLOADS)
def test_services_do_not_become_settings(workloads: dict[str, dict[str, Any]], name: str) -> None:
    assert workloads[name]["enableServiceLinks"] is False


def test_variables_are_settings(
    workloads: dict[str, dict[str, Any]], kustomization: dict[str, Any], root: Path
) -> None:
    page = (root / "docs" / "settings.md").read_text(encoding="utf-8")
    known = set(re.findall(r"`(TRUNKLINE_\w+)`", page))
    variables = {
        variable["name"]
        for pod in workloads.values()
        for container in _containers(pod)
        for variable in container.get("env", [])
    } | set(_settings(kustomization))
    assert {"TRUNKLINE_DATABASE_URL", "TRUNKLINE_MODEL"} <= variables
    assert {v for v in variables if v.startswith("TRUNKLINE_")} <= known


def test_what_pods_refer_to_is_there(
    workloads: dict[str, dict[str, Any]], manifests: list[dict[str, Any]]
) -> None:
    keys = {m["metadata"]["name"]: set(m["stringData"]) for m in manifests if m["kind"] == "Secret"}
    claims = {m["metadata"]["name"] for m in manifests if m["kind"] == "PersistentVolumeClaim"}
    for pod in workloads.values():
        volumes = pod.get("volumes", [])
        used = {
            v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v
        }
        assert used <= claims
        for container in _containers(pod):
            for variable in container.get("env", []):
                wanted = variable.get("valueFrom", {}).get("secretKeyRef")
                assert wanted is None or wanted["key"] in keys[wanted["name"]]
            for source in container.get("envFrom", []):
                if "secretRef" in source:
                    assert source["secretRef"]["name"] in keys
                else:
                    assert source["configMapRef"]["name"] == "trunkline-settings"


def test_mounts_have_volumes(
    workloads: dict[str, dict[str, Any]], manifests: list[dict[str, Any]]
) -> None:
    templates = {
        template["metadata"]["name"]
        for m in manifests
        for template in m.get("spec", {}).get("volumeClaimTemplates", [])
    }
    for pod in workloads.values():
        volumes = {volume["name"] for volume in pod.get("volumes", [])} | templates
        for container in _containers(pod):
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes


def test_names_are_those_of_pods(workloads: dict[str, dict[str, Any]]) -> None:
    """A process that comes back takes over at once what it had begun under the same name."""
    for part in ("server", "engine"):
        container = _main(workloads[f"trunkline-{part}"])
        values = {variable["name"]: variable.get("valueFrom") for variable in container["env"]}
        assert values[f"TRUNKLINE_{part.upper()}_NAME"] == {
            "fieldRef": {"fieldPath": "metadata.name"}
        }


def test_engine_names_belong_to_one_pod_at_a_time(manifests: list[dict[str, Any]]) -> None:
    kinds = {m["kind"] for m in manifests if m["metadata"]["name"] == "trunkline-engine"}
    assert "StatefulSet" in kinds
    assert "Deployment" not in kinds


def test_engine_has_a_gpu_and_only_reads_the_files(workloads: dict[str, dict[str, Any]]) -> None:
    engine = _main(workloads["trunkline-engine"])
    assert engine["resources"]["limits"]["nvidia.com/gpu"] == 1
    mounts = {mount["name"]: mount.get("readOnly", False) for mount in engine["volumeMounts"]}
    assert mounts == {"tmp": False, "cache": False, "data": True}


def test_probes_ask_what_the_images_answer(
    workloads: dict[str, dict[str, Any]], root: Path
) -> None:
    server, engine = _main(workloads["trunkline-server"]), _main(workloads["trunkline-engine"])
    assert server["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert server["readinessProbe"]["httpGet"]["path"] == "/readyz"
    dockerfile = (root / "docker" / "engine.Dockerfile").read_text()
    (_, script) = engine["livenessProbe"]["exec"]["command"]
    assert f"docker/engine_alive.py {script}" in dockerfile
    # To fetch and load a model takes long.
    startup = engine["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 3600


def test_a_server_stays_when_nodes_are_drained(manifests: list[dict[str, Any]]) -> None:
    named = {(m["kind"], m["metadata"]["name"]): m["spec"] for m in manifests if "spec" in m}
    server = named["Deployment", "trunkline-server"]
    budget = named["PodDisruptionBudget", "trunkline-server"]
    assert server["replicas"] > budget["minAvailable"] == 1
    assert budget["selector"] == server["selector"]
    assert named["Service", "trunkline-server"]["selector"] == server["selector"]["matchLabels"]


def test_bucket_component_frees_pods_from_the_shared_volume(folder: Path) -> None:
    component = yaml.safe_load((folder / "s3" / "kustomization.yaml").read_text())
    patches = {
        (p["kind"], p["metadata"]["name"]): p
        for p in (yaml.safe_load(entry["patch"]) for entry in component["patches"])
    }
    assert patches["PersistentVolumeClaim", "trunkline-data"]["$patch"] == "delete"
    for owner in (("Deployment", "trunkline-server"), ("StatefulSet", "trunkline-engine")):
        (volume,) = patches[owner]["spec"]["template"]["spec"]["volumes"]
        assert volume == {"name": "data", "persistentVolumeClaim": None, "emptyDir": {}}
