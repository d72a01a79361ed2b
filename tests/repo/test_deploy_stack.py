"""Gateway, Redis, Prometheus and Grafana around the server, as far as they can be held without a container engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.repo.test_deploy import DEPLOY, instructions, locked, with_defaults
from tests.support.export.artifacts import ROOT

STACK = yaml.safe_load((DEPLOY / "compose-stack.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = STACK["services"]
OURS = {name: service for name, service in SERVICES.items() if name != "triton"}
DOCKERFILE = (DEPLOY / "Dockerfile.gateway").read_text(encoding="utf-8")
SERVER_FILES = ("compose-cpu.yaml", "compose.yaml")
_PORTS = {"gateway": "8080", "prometheus": "9090", "grafana": "3000"}


def merged(server_file: str) -> dict[str, Any]:
    """As compose puts the two files together: maps are joined."""
    base = yaml.safe_load((DEPLOY / server_file).read_text(encoding="utf-8"))
    return _joined(base, STACK)


def _joined(one: Any, other: Any) -> Any:
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: _joined(one.get(key), other.get(key)) for key in [*one, *other]}
    return one if other is None else other


# ---- the compose file


@pytest.mark.parametrize("server_file", SERVER_FILES)
def test_it_is_valid_alone_and_with_either_server(server_file: str, tmp_path: Path) -> None:
    whole = tmp_path / "compose.yaml"
    whole.write_text(yaml.safe_dump(merged(server_file)))
    for path in (DEPLOY / "compose-stack.yaml", whole):
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("server_file", SERVER_FILES)
def test_the_server_gets_redis_and_keeps_all_that_it_had(server_file: str) -> None:
    base = yaml.safe_load((DEPLOY / server_file).read_text(encoding="utf-8"))["services"]["triton"]
    triton = merged(server_file)["services"]["triton"]
    assert triton["environment"] == {**base["environment"], "AUTOGLM_REDIS_URL": "redis://redis:6379/0"}
    assert {name: triton[name] for name in base.keys() - {"environment"}} == {
        name: base[name] for name in base.keys() - {"environment"}
    }


def test_all_five_start_after_what_they_need_is_well() -> None:
    assert SERVICES.keys() == {"triton", "gateway", "redis", "prometheus", "grafana"}
    waits = {name: service.get("depends_on", {}) for name, service in SERVICES.items()}
    needs = {name: set(needed) for name, needed in waits.items() if needed}
    assert needs == {"triton": {"redis"}, "gateway": {"triton"}, "grafana": {"prometheus"}}
    assert all(how == {"condition": "service_healthy"} for needed in waits.values() for how in needed.values())
    checked = {name for name, service in OURS.items() if "healthcheck" in service}
    assert checked | {"gateway"} == OURS.keys() and instructions("HEALTHCHECK", DOCKERFILE)


@pytest.mark.parametrize("name", sorted(OURS))
def test_nothing_runs_as_root_unbounded_or_unpinned(name: str) -> None:
    service = OURS[name]
    assert isinstance(service["user"], str) and int(service["user"].split(":")[0]) > 0
    assert service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"]
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
    assert service["restart"] == "unless-stopped" and service["logging"]["options"]["max-size"]
    if "build" not in service:
        tag = with_defaults(service["image"]).rpartition(":")[2]
        assert re.match(r"v?\d+\.\d+\.\d+", tag), f"{tag} is no version"


def test_what_is_published_is_on_loopback_and_redis_is_not() -> None:
    published = {name: service["ports"] for name, service in OURS.items() if "ports" in service}
    assert published == {name: [f"127.0.0.1:{port}:{port}"] for name, port in _PORTS.items()}


def test_what_is_mounted_is_there_and_read_only() -> None:
    mounts = [mount for service in OURS.values() for mount in service.get("volumes", ()) if mount["type"] == "bind"]
    assert len(mounts) == 4
    for mount in mounts:
        assert (DEPLOY / mount["source"]).is_file() and mount["read_only"] is True
        assert mount["bind"] == {"create_host_path": False}
    volumes = {mount["source"] for service in OURS.values() for mount in service.get("volumes", ())} & STACK[
        "volumes"
    ].keys()
    assert volumes == {"prometheus"}


# ---- Redis, Prometheus, Grafana


def test_redis_knows_its_arguments() -> None:
    """A real one, told the same but to listen nowhere, reads them all before it leaves."""
    program, *arguments = SERVICES["redis"]["command"]
    done = subprocess.run([program, *arguments, "--port", "0"], capture_output=True, text=True, check=False)
    assert "Configured to not listen anywhere, exiting" in done.stdout, done.stdout + done.stderr
    assert program == "redis-server"


def test_prometheus_reads_what_it_reads_elsewhere_at_the_services() -> None:
    alone, stack = (
        yaml.safe_load((DEPLOY / "monitoring" / name).read_text())
        for name in ("prometheus.yml", "prometheus-stack.yml")
    )
    targets = [config.pop("static_configs")[0]["targets"] for config in stack["scrape_configs"]]
    for config in alone["scrape_configs"]:
        config.pop("static_configs")
    assert stack == alone
    assert targets == [["gateway:8080"], ["triton:8002"]]
    (mount, _) = SERVICES["prometheus"]["volumes"]
    assert f"--config.file={mount['target']}" in SERVICES["prometheus"]["command"]


def test_grafana_finds_its_data_and_its_dashboard() -> None:
    (source,) = yaml.safe_load((DEPLOY / "monitoring" / "grafana" / "datasource.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus" and source["isDefault"] is True, "the dashboard takes the default one"
    assert source["url"] == f"http://prometheus:{_PORTS['prometheus']}"
    (provider,) = yaml.safe_load((DEPLOY / "monitoring" / "grafana" / "dashboards.yaml").read_text())["providers"]
    targets = {Path(mount["target"]) for mount in SERVICES["grafana"]["volumes"]}
    (dashboard,) = [path for path in targets if path.suffix == ".json"]
    assert str(dashboard.parent) == provider["options"]["path"]
    assert SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == str(dashboard)
    provisioned = {path.parent.name for path in targets if path.suffix == ".yaml"}
    assert provisioned == {"datasources", "dashboards"}


# ---- the gateway's image


def test_what_the_image_copies_is_there_and_in_the_build_context() -> None:
    sources = {source for line in instructions("COPY", DOCKERFILE) for source in line.split()[:-1]}
    allowed = {line[1:] for line in _ignored() if line.startswith("!")}
    assert sources == allowed and all((ROOT / source).exists() for source in sources)
    assert "*" in _ignored() and "**/__pycache__" in _ignored()
    build = SERVICES["gateway"]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT and (ROOT / build["dockerfile"]).is_file()


def _ignored() -> list[str]:
    return (DEPLOY / "Dockerfile.gateway.dockerignore").read_text().splitlines()


def test_the_image_is_slim_pinned_locked_and_not_roots() -> None:
    arguments = dict(argument.split("=", 1) for argument in instructions("ARG", DOCKERFILE))
    assert re.fullmatch(r"3\.1[12]\.\d+-slim-\w+", arguments["PYTHON_TAG"])
    assert with_defaults(SERVICES["gateway"]["build"]["args"]["PYTHON_TAG"]) == arguments["PYTHON_TAG"]
    assert instructions("FROM", DOCKERFILE) == ["python:${PYTHON_TAG}"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert arguments["AUTOGLM_VERSION"] == project["version"]
    (installing,) = [line for line in instructions("RUN", DOCKERFILE) if "pip install" in line]
    assert "--require-hashes" in installing and "--no-cache-dir" in installing and "--only-binary=:all:" in installing
    assert instructions("USER", DOCKERFILE) == [SERVICES["gateway"]["user"]]
    order = [line.split()[0] for line in DOCKERFILE.splitlines() if re.match(r"[A-Z]+ ", line)]
    assert order.index("USER") > max(place for place, word in enumerate(order) if word in ("RUN", "COPY"))


def test_it_installs_all_that_the_client_and_the_gateway_need() -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *project["optional-dependencies"]["gateway"]]
    needs = [Requirement(text) for text in texts]
    pins = dict(pin.split("==") for pin in locked("requirements-gateway"))
    for need in needs:
        if not need.marker or need.marker.evaluate({"python_version": "3.12"}):
            assert need.specifier.contains(pins[need.name.lower().replace("_", "-")]), need


def test_the_entrypoint_serves_with_nothing_of_the_servers_half(tmp_path: Path) -> None:
    """The command of the image and that of the compose file, where neither engine nor exporter can be imported."""
    entrypoint = json.loads(instructions("ENTRYPOINT", DOCKERFILE)[0])
    assert entrypoint[:2] == ["python3", "-m"]
    module, *arguments = entrypoint[2:]
    command = [*arguments, *SERVICES["gateway"]["command"], "--print-config"]
    refused = [
        "autoglm_engine",
        "autoglm_export",
        "autoglm_perf",
        "tokenizers",
        "onnx",
        "onnxruntime",
        "torch",
        "jinja2",
        "psutil",
    ]
    code = (
        "import runpy, sys\n"
        f"for name in {refused!r}: sys.modules[name] = None\n"
        "import autoglm_gateway.server.serving\n"
        f"sys.argv[1:] = {command!r}\n"
        f"runpy.run_module({module!r}, run_name='__main__')\n"
    )
    paths = os.pathsep.join([str(ROOT / "client"), str(ROOT / "gateway")])
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": paths, "HOME": str(tmp_path), "AUTOGLM_GATEWAY_KEYS": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = tomllib.loads(done.stdout)
    assert said["servers"] == ["triton:8001"] == json.loads(instructions("CMD", DOCKERFILE)[0])[1:]
    assert (said["host"], str(said["port"]), said["open"]) == ("0.0.0.0", _PORTS["gateway"], True)
    assert instructions("EXPOSE", DOCKERFILE) == [_PORTS["gateway"]]


def test_the_image_alone_lets_nobody_in_without_keys(tmp_path: Path) -> None:
    """Its own command has no --open."""
    *_, host, _, _ = json.loads(instructions("ENTRYPOINT", DOCKERFILE)[0])
    assert "--open" not in DOCKERFILE.split('CMD ["--server"')[1] and host == "0.0.0.0"
    from autoglm_gateway.settings.error import SettingsError
    from autoglm_gateway.settings.model import GatewaySettings

    with pytest.raises(SettingsError, match="can be reached from elsewhere and there are no keys"):
        GatewaySettings(host=host)


def test_the_health_check_outlasts_its_own_question() -> None:
    (check,) = instructions("HEALTHCHECK", DOCKERFILE)
    timeout = re.search(r"--timeout=(\d+)s", check)
    asked = re.search(r"timeout=(\d+)\)", check)
    assert timeout and asked and int(timeout[1]) > int(asked[1])
    command = json.loads(check.split(" CMD ")[1])
    compile(command[-1], "healthcheck", "exec")
    assert f":{_PORTS['gateway']}/health/ready" in command[-1]
