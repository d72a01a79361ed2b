"""The container set-up, as far as it can be checked without a container engine: schema, paths, flags, versions,
refusals."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from autoglm_cli.repository.repositories import families, own_artifact
from autoglm_cli.repository.writer import Family, write_family
from autoglm_cli.server import stack_limit, triton_command, triton_flags
from autoglm_cli.server.local_server import LocalServer
from autoglm_cli.server.server_tls import ServerTLS
from autoglm_cli.server.triton_install import find_triton
from packaging.requirements import Requirement

from tests.support.server.certificates import Authority
from tests.support.server.http_servers import QuietHandler, listening

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
IMAGE = DEPLOY / "image"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
DOCKERFILE_CPU = (DEPLOY / "Dockerfile.cpu").read_text(encoding="utf-8")
LOCKS = ("requirements", "requirements-cpu", "requirements-gateway")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICE: dict[str, Any] = COMPOSE["services"]["triton"]
DEFAULT = re.compile(r"\$\{(\w+):-([^}]*)\}")


def load_script(name: str, folder: Path = IMAGE) -> ModuleType:
    """One that is in no package; those beside it are found by it."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    spec = importlib.util.spec_from_file_location(f"deploy_{name}", folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


serve, health = load_script("serve"), load_script("health")


def with_defaults(text: object) -> str:
    """As compose reads it where nothing is set."""
    return DEFAULT.sub(lambda match: match[2], str(text))


def instructions(name: str, dockerfile: str = DOCKERFILE) -> list[str]:
    joined = re.sub(r"\\\n\s*", "", dockerfile)
    return [line.removeprefix(f"{name} ") for line in joined.splitlines() if line.startswith(f"{name} ")]


def build_arguments() -> dict[str, str]:
    return dict(argument.split("=", 1) for argument in instructions("ARG"))


def seconds(text: str) -> float:
    units = {"s": 1, "m": 60}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"(\d+)([sm])", text))


# ---- what tritonserver is told


def program(folder: Path, help_text: str) -> str:
    made = folder / "tritonserver"
    made.write_text(f"#!/bin/sh\necho '{help_text}' >&2\nexit 1\n")
    made.chmod(0o755)
    return str(made)


def test_clients_shared_memory_is_allowed_where_the_server_has_to_be_told(tmp_path: Path) -> None:
    told = ["--allow-client-shm=true"]
    for text, flags in (("--allow-client-shm <boolean>", told), ("--allow-http <boolean>", [])):
        named = program(tmp_path, text)
        assert serve.known_flags(named) == flags
        assert list(triton_flags.client_memory_arguments(Path(named))) == flags
    assert serve.known_flags(str(tmp_path / "none")) == [] == serve.known_flags(str(tmp_path))
    assert triton_flags.client_memory_arguments(tmp_path / "none") == ()


def test_tls_of_the_container(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    signed = authority.sign("server", "triton")
    files = {"AUTOGLM_GRPC_TLS_CERT": str(signed.cert), "AUTOGLM_GRPC_TLS_KEY": str(signed.key)}
    server = ServerTLS(cert=signed.cert, key=signed.key)
    assert serve.tls_arguments({}) == [] and serve.tls_arguments(files) == list(server.arguments())
    mutual = files | {"AUTOGLM_GRPC_TLS_CLIENT_CA": str(authority.cert)}
    server = ServerTLS(cert=signed.cert, key=signed.key, client_ca=authority.cert)
    assert serve.tls_arguments(mutual) == list(server.arguments())
    for wrong in (files | {"AUTOGLM_GRPC_TLS_KEY": "none"}, {"AUTOGLM_GRPC_TLS_CLIENT_CA": str(authority.cert)}):
        with pytest.raises(serve.Refusal, match="AUTOGLM_GRPC_TLS_CERT"):
            serve.tls_arguments(wrong)


def test_the_container_and_serve_admit_the_same_pings() -> None:
    assert set(triton_flags.PING_ARGUMENTS) <= set(serve.command(Path("/m"), "k" * 16))


# ---- compose.yaml


@pytest.mark.parametrize("name", ["compose.yaml", "compose-cpu.yaml"])
def test_the_compose_file_is_valid_in_the_compose_specification(name: str) -> None:
    command = ["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(DEPLOY / name)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schema_would_see_a_wrong_key(tmp_path: Path) -> None:
    spoiled = tmp_path / "compose.yaml"
    spoiled.write_text((DEPLOY / "compose.yaml").read_text().replace("shm_size:", "shm_sise:"))
    command = ["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(spoiled)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "shm_sise" in done.stdout


def test_what_is_mounted_is_there_and_read_only() -> None:
    mounts = {mount["target"]: mount for mount in SERVICE["volumes"]}
    assert mounts.keys() == {"/model_repository", "/artifact"}
    for mount in mounts.values():
        assert mount["type"] == "bind"
        assert mount["read_only"] is True
        assert mount["bind"] == {"create_host_path": False}, "a wrong path is an error, not an empty folder"
    repository = DEPLOY / with_defaults(mounts["/model_repository"]["source"])
    assert (repository / "autoglm" / "config.pbtxt").exists()
    artifact = Path(with_defaults(mounts["/artifact"]["source"]))
    assert (DEPLOY / artifact).resolve() == (repository / "engine" / "1" / "artifact").resolve()
    assert SERVICE["environment"]["AUTOGLM_ARTIFACT"] == "/artifact"


def test_the_ports_are_on_loopback_and_are_those_that_the_server_listens_on() -> None:
    listening = dict(
        re.fullmatch(r"--([a-z0-9-]+)=(.*)", flag).groups() for flag in serve.command(Path("/m"), "k" * 16)[1:]
    )  # type: ignore[union-attr]
    inside = {listening[f"{name}-port"] for name in ("grpc", "metrics")}
    assert listening["http-address"] == "127.0.0.1" == with_defaults(SERVICE["environment"]["AUTOGLM_HTTP_ADDRESS"])
    published = [with_defaults(port).split(":") for port in SERVICE["ports"]]
    assert {target for _, _, target in published} == inside
    assert {host for host, _, _ in published} == {"127.0.0.1"}
    assert set(instructions("EXPOSE")[0].split()) == inside


def test_one_gpu_is_reserved_and_the_rest_is_limited() -> None:
    resources = SERVICE["deploy"]["resources"]
    (gpu,) = resources["reservations"]["devices"]
    assert gpu["driver"] == "nvidia"
    assert gpu["capabilities"] == ["gpu"]
    assert [with_defaults(device) for device in gpu["device_ids"]] == ["0"]
    assert resources["limits"].keys() == {"cpus", "memory", "pids"}
    assert SERVICE["logging"]["options"].keys() == {"max-size", "max-file"}


def test_nothing_runs_as_root_or_can_become_it() -> None:
    uid, gid = (int(part) for part in with_defaults(SERVICE["user"]).split(":"))
    assert uid > 0
    assert gid > 0
    assert instructions("USER") == [f"{uid}:{gid}"]
    assert SERVICE["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in SERVICE["security_opt"]
    assert "privileged" not in SERVICE


def test_the_server_has_its_time_to_end() -> None:
    assert SERVICE["stop_signal"] == "SIGTERM" == instructions("STOPSIGNAL")[0]
    assert seconds(SERVICE["stop_grace_period"]) > serve.EXIT_SECONDS + 10
    assert SERVICE["restart"] == "unless-stopped", "a server ends with its engine: something must start it again"


def test_the_health_check_outlasts_its_own_questions() -> None:
    check = SERVICE["healthcheck"]
    assert seconds(check["timeout"]) > 2 * health.TIMEOUT
    assert check["test"][:2] == ["CMD", "python3"]
    assert check["test"][2] in copied_files()


# ---- Dockerfile


def copied_files() -> set[str]:
    copied = set()
    for line in instructions("COPY"):
        *sources, target = line.split()
        copied |= {target + Path(source).name if target.endswith("/") else target for source in sources}
    return copied


def test_what_the_images_copy_is_there_and_in_the_build_context() -> None:
    copied = [line for text in (DOCKERFILE, DOCKERFILE_CPU) for line in instructions("COPY", text)]
    sources = {source for line in copied for source in line.split()[:-1]}
    allowed = {line[1:] for line in (DEPLOY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources == allowed
    assert all((DEPLOY / source).is_file() for source in sources)
    assert SERVICE["build"]["context"] == "."


def test_the_image_of_the_cpu_is_the_other_one_without_tensorrt() -> None:
    """The same base, user and command; what it installs is locked, all of it."""
    for name in ("FROM", "USER", "ENV", "EXPOSE", "STOPSIGNAL", "CMD"):
        assert instructions(name, DOCKERFILE_CPU) == instructions(name)
    tag = f"TRITON_TAG={build_arguments()['TRITON_TAG']}"
    assert instructions("ARG", DOCKERFILE_CPU) == [tag]
    (installed,) = instructions("RUN", DOCKERFILE_CPU)
    assert "--require-hashes" in installed and installed.split()[-1] == "/opt/autoglm/requirements-cpu.lock"
    scripts = [
        {source for line in instructions("COPY", text) for source in line.split()[:-1] if source.endswith(".py")}
        for text in (DOCKERFILE, DOCKERFILE_CPU)
    ]
    assert scripts[0] == scripts[1] and {"image/serve.py", "image/health.py"} < scripts[0]


def test_compose_for_the_cpu_differs_in_the_gpu_alone() -> None:
    cpu = yaml.safe_load((DEPLOY / "compose-cpu.yaml").read_text(encoding="utf-8"))["services"]["triton"]
    of_the_gpu = {"memlock": SERVICE["ulimits"]["memlock"]}
    assert cpu["build"]["dockerfile"] == "Dockerfile.cpu"
    assert cpu["build"]["args"] == {"TRITON_TAG": SERVICE["build"]["args"]["TRITON_TAG"]}
    assert {**cpu["ulimits"], **of_the_gpu} == SERVICE["ulimits"]
    assert cpu["deploy"]["resources"] == {"limits": SERVICE["deploy"]["resources"]["limits"]}
    same = SERVICE.keys() - {"image", "build", "ulimits", "deploy"}
    assert {name: cpu[name] for name in same} == {name: SERVICE[name] for name in same}
    assert cpu.keys() == SERVICE.keys()


def test_the_image_is_built_as_it_should_be() -> None:
    (base,) = instructions("FROM")
    assert base == "nvcr.io/nvidia/tritonserver:${TRITON_TAG}"
    assert re.fullmatch(r"\d\d\.\d\d-py3", build_arguments()["TRITON_TAG"])
    assert all("--no-cache-dir" in line for line in instructions("RUN") if "pip install" in line)
    assert not instructions("ADD")
    command = json.loads(instructions("CMD")[0])
    assert command[0] == "python3"
    assert command[1] in copied_files()
    order = [line.split()[0] for line in DOCKERFILE.splitlines() if re.match(r"[A-Z]+ ", line)]
    assert order.index("USER") > max(place for place, word in enumerate(order) if word in ("RUN", "COPY"))


def test_compose_and_dockerfile_have_the_same_defaults() -> None:
    passed = {name: with_defaults(value) for name, value in SERVICE["build"]["args"].items()}
    assert passed == build_arguments()
    assert (
        with_defaults(SERVICE["image"]) == f"autoglm-triton:{passed['TENSORRT_PACKAGE']}-{passed['TENSORRT_VERSION']}"
    )


def pins(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {name.lower(): version for name, version in (line.split("==") for line in lines)}


def test_the_image_has_the_versions_that_the_project_is_tested_with() -> None:
    constraints, extras = pins(ROOT / "constraints.txt"), optional_dependencies()
    installed = pins(DEPLOY / "requirements" / "requirements.txt")
    assert installed.items() <= constraints.items()
    served = {**installed, "tensorrt": build_arguments()["TENSORRT_VERSION"]}
    wanted = [need for need in (*extras["serve"], *extras["tensorrt"]) if need.name in served]
    assert {need.name for need in wanted} == served.keys()
    for need in wanted:
        assert need.specifier.contains(served[need.name]), f"{need} against {served[need.name]}"


def locked(name: str = "requirements") -> dict[str, list[str]]:
    """Pin -> hashes, as pip reads the file."""
    text = (DEPLOY / "requirements" / f"{name}.lock").read_text().replace("\\\n", "")
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return {pin: hashes for pin, *hashes in lines}


@pytest.mark.parametrize("name", LOCKS)
def test_every_wheel_of_the_image_has_its_hash_and_the_version_of_the_constraints(name: str) -> None:
    constraints, lock = pins(ROOT / "constraints.txt"), dict(pin.split("==") for pin in locked(name))
    canonical = {name.replace("_", "-"): version for name, version in constraints.items()}
    assert lock.items() <= canonical.items()
    assert pins(DEPLOY / "requirements" / f"{name}.txt").items() <= lock.items()
    hashes = [one for of_package in locked(name).values() for one in of_package]
    assert all(locked(name).values()) and all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", one) for one in hashes)
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_what_a_locked_package_needs_is_locked_too(python: str, lock: str) -> None:
    """As the packages that are installed here say it; pip would refuse to install one without a hash."""
    where = {"extra": "", "python_version": python, "python_full_version": f"{python}.9", "platform_machine": "x86_64"}
    names = {pin.split("==")[0] for pin in locked(lock)}
    for name in names:
        needs = [Requirement(text) for text in metadata.requires(name) or []]
        wanted = {
            need.name.lower().replace("_", "-") for need in needs if not need.marker or need.marker.evaluate(where)
        }
        assert wanted <= names, f"{name} needs {wanted - names}: run deploy/requirements/lock.py"


def test_the_image_installs_what_is_locked_and_nothing_unlocked_but_tensorrt() -> None:
    locked_step, tensorrt_step = (line for line in instructions("RUN") if "pip install" in line)
    assert "--require-hashes" in locked_step and locked_step.split()[-2:] == [
        "--requirement",
        "/opt/autoglm/requirements.lock",
    ]
    assert "--constraint /opt/autoglm/requirements.txt" in tensorrt_step
    assert tensorrt_step.split()[-1] == '"${TENSORRT_PACKAGE}==${TENSORRT_VERSION}"'


def test_an_exporter_set_up_by_the_makefile_builds_what_the_image_serves() -> None:
    constraints = pins(ROOT / "constraints.txt")
    assert constraints["tensorrt"] == build_arguments()["TENSORRT_VERSION"]
    (rtx,) = [need for need in optional_dependencies()["tensorrt-rtx"] if need.name == "tensorrt-rtx"]
    assert rtx.specifier.contains(constraints["tensorrt-rtx"])


def optional_dependencies() -> dict[str, list[Requirement]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {name: [Requirement(text) for text in needs] for name, needs in project["optional-dependencies"].items()}


# ---- serve.py


def test_bodies_find_the_stack_that_they_need() -> None:
    """Of the process that becomes tritonserver; what may not be raised stays as it is."""
    code = (
        f"import sys; sys.path.insert(0, {str(IMAGE)!r}); import serve, resource; "
        f"{{}}serve.raise_stack_limit(); print(resource.getrlimit(3))"
    )
    lowered = "resource.setrlimit(3, (1 << 20, 4 << 20)); "
    bounded = "resource.setrlimit(3, (1 << 20, 4 << 20)); resource.setrlimit(resource.RLIMIT_AS, (1 << 34, 1 << 34)); "
    for before, expected in (("", serve.STACK_BYTES), (lowered, 4 << 20), (bounded, 1 << 20)):
        done = subprocess.run([sys.executable, "-c", code.format(before)], capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"({expected}, ")
    assert serve.STACK_BYTES == stack_limit.STACK_BYTES == SERVICE["ulimits"]["stack"]


def test_the_server_knows_every_flag() -> None:
    triton = find_triton()
    done = subprocess.run(
        [triton.binary, "--help"], env=triton.environment({}), capture_output=True, text=True, check=False
    )
    known = set(re.findall(r"^\s*--([a-z0-9-]+)", done.stdout + done.stderr, flags=re.MULTILINE))
    used = {flag[2:].split("=")[0] for flag in serve.command(Path("/model_repository"), "k" * 16)[1:]}
    assert "model-repository" in used
    assert used <= known


def test_the_control_apis_are_closed_as_in_the_local_server() -> None:
    assert serve.CONTROL_APIS == triton_command.CONTROL_APIS
    flags = serve.command(Path("/m"), "0123456789abcdef")
    for name in ("http-restricted-api", "grpc-restricted-protocol"):
        assert f"--{name}={serve.CONTROL_APIS}:autoglm-control-key=0123456789abcdef" in flags


def test_the_control_key_comes_from_the_environment_or_is_random() -> None:
    assert serve.control_key({"AUTOGLM_CONTROL_KEY": "0123456789abcdef"}) == "0123456789abcdef"
    drawn = {serve.control_key({"AUTOGLM_CONTROL_KEY": ""}) for _ in range(5)}
    assert len(drawn) == 5
    assert all(len(key) == 32 for key in drawn)


@pytest.mark.parametrize("key", ["short", "with:colon-0123456789", "with=equals-0123456789", "x" * 129])
def test_a_key_that_would_break_the_flag_is_refused(key: str) -> None:
    with pytest.raises(serve.Refusal, match=r"AUTOGLM_CONTROL_KEY has \d+ characters.*allowed are 16"):
        serve.control_key({"AUTOGLM_CONTROL_KEY": key})


def write_manifest(folder: Path, **content: str) -> Path:
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def with_installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(serve.metadata, "version", version)


def test_the_tensorrt_that_built_the_plan_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_installed(monkeypatch, tensorrt="11.4.0.106")
    serve.check_artifact(write_manifest(tmp_path, runtime="tensorrt", runtime_version="11.4.0.106"))


@pytest.mark.parametrize("runtime", ["native", "onnx"])
def test_an_artifact_of_the_cpu_is_accepted(runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same version or another: the engine knows what it reads. The native one needs no package."""
    with_installed(monkeypatch, **({"onnxruntime": "1.31.1"} if runtime == "onnx" else {}))
    serve.check_artifact(write_manifest(tmp_path, runtime=runtime, runtime_version="1.30.0"))


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (
            {"runtime": "tensorrt", "runtime_version": "11.3.0.9"},
            r"by tensorrt 11\.3\.0\.9, this image has 11\.4\.0\.106; build",
        ),
        (
            {"runtime": "tensorrt-rtx", "runtime_version": "1.7.1.116"},
            (
                r"by tensorrt-rtx 1\.7\.1\.116, this image has none; build .* TENSORRT_PACKAGE=tensorrt-rtx "
                r"TENSORRT_VERSION=1\.7\.1\.116"
            ),
        ),
        (
            {"runtime": "onnx", "runtime_version": "1.31.1"},
            r"runtime is onnx, this image has no onnxruntime; build it of Dockerfile\.cpu",
        ),
        (
            {"runtime": "tflite", "runtime_version": "1"},
            r"runtime is 'tflite'; images serve tensorrt, tensorrt-rtx, onnx, native",
        ),
        ({"runtime": "tensorrt"}, r"manifest\.json cannot be read: KeyError"),
    ],
)
def test_another_artifact_is_refused_in_one_sentence(
    manifest: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_installed(monkeypatch, tensorrt="11.4.0.106")
    with pytest.raises(serve.Refusal, match=message) as caught:
        serve.check_artifact(write_manifest(tmp_path, **manifest))
    assert "\n" not in str(caught.value)


def test_each_engines_own_artifact_is_checked(tmp_path: Path) -> None:
    """As the client's tools and the models find them."""
    repository, artifact = tmp_path / "models", tmp_path / "artifact"
    artifact.mkdir()
    environ = {"AUTOGLM_ARTIFACT": "/artifact"}
    with pytest.raises(serve.Refusal, match="AUTOGLM_ARTIFACT is not set"):
        serve.artifacts(repository, {})
    assert serve.artifacts(repository, environ) == [Path("/artifact")]
    for name in ("phone", "chat"):
        write_family(Family(name, ROOT / "model_repository", artifact, link=True), repository)
    assert serve.artifacts(repository, {}) == [own_artifact(repository, names) for names in families(repository)]
    write_family(Family("autoglm", ROOT / "model_repository", artifact, link=True), repository)
    (repository / "someones-engine").mkdir()
    (repository / "someones-engine" / "config.pbtxt").touch()
    with pytest.raises(serve.Refusal, match="AUTOGLM_ARTIFACT is not set"):
        serve.artifacts(repository, {})
    assert len(serve.artifacts(repository, environ)) == 3 == len(families(repository))
    assert set(serve.engines(repository)) == {names.engine for names in families(repository)}


def test_the_command_refuses_before_it_starts_anything(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, IMAGE / "serve.py"],
        env={"AUTOGLM_ARTIFACT": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert re.fullmatch(r"Error: .*manifest\.json cannot be read: .*; mount the folder .*\n", done.stderr)


# ---- health.py


@contextmanager
def answering(ready: int, engine: int) -> Iterator[str]:
    """A server whose two answers have these statuses; yields its address."""

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            self.reply(ready if self.path == "/v2/health/ready" else 404)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = self.path == "/v2/models/engine/generate" and json.loads(body["control"]) == {"stats": True}
            self.reply(engine if asked else 404)

        def reply(self, status: int) -> None:
            self.send_response(status)
            self.end_headers()

    with listening(Handler) as url:
        yield url


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ready", "engine", "reason"),
    [
        (200, 200, None),
        (503, 200, "the server is not ready: .*503"),
        (200, 500, "the model engine does not answer: .*500"),
    ],
)
def test_health_needs_a_ready_server_and_an_engine_that_answers(ready: int, engine: int, reason: str | None) -> None:
    with answering(ready, engine) as url:
        found = health.failure(url)
    assert found is None if reason is None else re.match(reason, found)


@pytest.mark.slow
def test_health_asks_every_engine() -> None:
    with answering(200, 200) as url:
        assert health.failure(url, ["engine"]) is None
        assert re.match(
            "the model phone-engine does not answer: .*404", health.failure(url, ["engine", "phone-engine"])
        )


def test_health_asks_this_container_whatever_its_proxies_are() -> None:
    """Docker sets them in every container where its user has some."""
    proxies = {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    with answering(200, 200) as url:
        environment = {**os.environ, **proxies, "AUTOGLM_HEALTH_URL": url}
        done = subprocess.run([sys.executable, IMAGE / "health.py"], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_server_that_is_not_there_is_not_healthy() -> None:
    assert re.match("the server is not ready: .*refused", health.failure("http://127.0.0.1:9"))


@pytest.mark.server
def test_the_real_server_is_healthy(server: LocalServer) -> None:
    assert health.failure(server.http_url) is None
