"""The manifests in deploy/kubernetes, as far as they can be held without a cluster: against the image, its scripts and
settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from autoglm_engine.metrics import ALL_METRICS
from autoglm_engine.triton.metrics_publisher import PREFIX, unit_suffix

from tests.repo.test_deploy import health, serve

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
DOCKERFILES = ("Dockerfile", "Dockerfile.cpu")


def manifest(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return found


DEPLOYMENT = manifest("deployment")
POD: dict[str, Any] = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
PROBES = {name: CONTAINER[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}


def test_the_kustomization_names_every_file_that_is_there() -> None:
    text = (FOLDER / "kustomization.yaml").read_text(encoding="utf-8")
    assert manifest("kustomization")["resources"] == ["deployment.yaml", "service.yaml", "podmonitor.yaml", "hpa.yaml"]
    assert {path.name for path in FOLDER.iterdir()} == {*re.findall(r"\b(\w+\.yaml)\b", text), "kustomization.yaml"}


@pytest.mark.parametrize("name", ["deployment", "service", "podmonitor", "hpa", "gpu"])
def test_all_belong_to_one_name(name: str) -> None:
    assert manifest(name)["metadata"]["name"] == "autoglm"


def test_everything_selects_the_pods_of_the_deployment() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == labels
    assert manifest("service")["spec"]["selector"] == labels
    assert manifest("podmonitor")["spec"]["selector"]["matchLabels"] == labels
    target = manifest("hpa")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", DEPLOYMENT["metadata"]["name"])


def test_each_probe_runs_the_images_health_check_and_outlasts_its_questions() -> None:
    for probe in PROBES.values():
        python, script = probe["exec"]["command"]
        assert python == "python3" and Path(script).name == "health.py"
        assert probe["timeoutSeconds"] > 2 * health.TIMEOUT
    for name in DOCKERFILES:
        assert re.search(r"^COPY .*health\.py .*/opt/autoglm/$", (FOLDER.parent / name).read_text(), re.MULTILINE)


def test_a_slow_start_is_waited_for_and_a_busy_server_is_no_dead_one() -> None:
    startup, readiness, liveness = (PROBES[name] for name in ("startup", "readiness", "liveness"))
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 120
    assert (
        liveness["periodSeconds"] * liveness["failureThreshold"]
        > readiness["periodSeconds"] * readiness["failureThreshold"]
    )


def test_running_requests_have_their_time_to_end() -> None:
    pause = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    assert POD["terminationGracePeriodSeconds"] >= pause + serve.EXIT_SECONDS + 20


def test_nothing_runs_as_root_or_writes_outside_of_its_own_volumes() -> None:
    pod, container = POD["securityContext"], CONTAINER["securityContext"]
    assert pod["runAsNonRoot"] and pod["runAsUser"] == pod["runAsGroup"] == pod["fsGroup"] == 1000
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["automountServiceAccountToken"] is False
    for name in DOCKERFILES:
        assert "USER 1000:1000" in (FOLDER.parent / name).read_text()
        assert "HOME=/tmp" in (FOLDER.parent / name).read_text(), "the one folder that may be written"


def test_the_mounts_are_what_the_servers_command_reads() -> None:
    mounts = {mount["mountPath"]: mount for mount in CONTAINER["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert mounts.keys() == {"/model_repository", "/artifact", "/dev/shm", "/tmp"}
    assert {path for path, mount in mounts.items() if mount.get("readOnly")} == {"/model_repository", "/artifact"}
    assert all(mount["name"] in volumes for mount in mounts.values())
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    assert volumes["tmp"]["emptyDir"].get("medium") is None
    environment = {one["name"]: one.get("value") for one in CONTAINER["env"]}
    assert environment["AUTOGLM_ARTIFACT"] == "/artifact"
    assert "/model_repository" in (Path(serve.__file__).read_text())


def test_the_memory_limit_holds_what_lies_in_shared_memory() -> None:
    units = {"Mi": 1 << 20, "Gi": 1 << 30}

    def amount(text: str) -> int:
        return int(text[:-2]) * units[text[-2:]]

    (shm,) = [volume["emptyDir"] for volume in POD["volumes"] if volume["name"] == "shm"]
    assert amount(shm["sizeLimit"]) > 64 << 20
    assert amount(CONTAINER["resources"]["limits"]["memory"]) > 2 * amount(shm["sizeLimit"])


def test_the_ports_are_the_servers() -> None:
    flags = dict(flag[2:].split("=", 1) for flag in serve.command(Path("/m"), "k" * 16)[1:])
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {"grpc": int(flags["grpc-port"]), "metrics": int(flags["metrics-port"])}
    assert {port["targetPort"] for port in manifest("service")["spec"]["ports"]} == ports.keys()
    (endpoint,) = manifest("podmonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"


def test_pods_are_counted_by_a_metric_that_the_engine_publishes() -> None:
    (metric,) = manifest("hpa")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in {f"{PREFIX}{spec.name}{unit_suffix(spec)}" for spec in ALL_METRICS}


def test_the_gpu_patch_meets_the_container() -> None:
    (patched,) = manifest("gpu")["spec"]["template"]["spec"]["containers"]
    assert patched["name"] == CONTAINER["name"]
    assert patched["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize("version", ["1.27", "1.31", "1.37"])
def test_kubernetes_own_schemas_know_every_field(version: str) -> None:
    for name in ("deployment", "service", "hpa"):
        kubernetes_validate.validate(manifest(name), version, strict=True)
    broken = manifest("deployment")
    broken["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(broken, version, strict=True)
