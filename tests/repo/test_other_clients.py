"""The programs of docs/clients: each cancels an answer of the real server. Those that have to be compiled need what
their language's gRPC is made of, and are left out where that is not installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from autoglm_client import Client, LocalServer
from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

from tests.support.export.artifacts import ROOT
from tests.support.server.raw_grpc import Stream

PROGRAMS = ROOT / "docs" / "clients"
PROTOS = ("grpc_service.proto", "model_config.proto")
JARS = Path("/usr/share/java")
LIBRARIES = ("grpc-api", "grpc-stub", "grpc-core", "grpc-protobuf", "grpc-protobuf-lite", "protobuf", "guava")
NETTY = (
    "buffer",
    "codec",
    "codec-http",
    "codec-http2",
    "codec-socks",
    "common",
    "handler",
    "handler-proxy",
    "resolver",
    "transport",
    "transport-native-unix-common",
)
NETWORK = ("grpc-netty", "grpc-context", "perfmark-api", *(f"netty-{part}" for part in NETTY))
GO_LIBRARIES = Path("/usr/share/gocode")
GO_INSECURE = Path("google.golang.org/grpc/credentials/insecure")
# What Debian 12's gRPC, 1.33, has no package for yet.
GO_PLAIN_CONNECTIONS = """package insecure

import (
	"context"
	"net"

	"google.golang.org/grpc/credentials"
)

type plain struct{}

func (plain) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return conn, nil, nil
}

func (plain) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) { return conn, nil, nil }

func (plain) Info() credentials.ProtocolInfo { return credentials.ProtocolInfo{SecurityProtocol: "insecure"} }

func (plain) Clone() credentials.TransportCredentials { return plain{} }

func (plain) OverrideServerName(string) error { return nil }

func NewCredentials() credentials.TransportCredentials { return plain{} }
"""
SECONDS = 3000  # a compiler on a machine that does other things


def needs(*programs: str) -> list[str]:
    found = [shutil.which(name) for name in programs]
    if missing := [name for name, path in zip(programs, found, strict=True) if path is None]:
        pytest.skip(f"{missing[0]} is not installed")
    return [str(path) for path in found]


def run(*command: str | Path, folder: Path) -> str:
    done = subprocess.run(
        [*map(str, command)], cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def generate_code(folder: Path, *outputs: str) -> None:
    """From Triton's own messages, as the Python package brings them."""
    files = descriptor_pb2.FileDescriptorSet()
    for module in (model_config_pb2, service_pb2):
        files.file.add().ParseFromString(module.DESCRIPTOR.serialized_pb)
    (folder / "triton.pb").write_bytes(files.SerializeToString())
    run("protoc", "--descriptor_set_in=triton.pb", *outputs, *PROTOS, folder=folder)


def is_idle(server: LocalServer) -> bool:
    with Client(server.grpc_url) as client:
        engine = client.stats().engine
    return (engine["running"], engine["waiting"]) == (0, 0)


@pytest.mark.server
def test_python(server: LocalServer, tmp_path: Path) -> None:
    said = run(sys.executable, PROGRAMS / "cancel.py", server.grpc_url, folder=tmp_path)
    assert said == "finish reason: cancelled\n" and is_idle(server)


@pytest.mark.server
@pytest.mark.slow
def test_cpp(server: LocalServer, tmp_path: Path) -> None:
    compiler, plugin, *_ = needs("g++", "grpc_cpp_plugin", "protoc", "pkg-config")
    for header, package in (("grpcpp/grpcpp.h", "libgrpc++-dev"), ("google/protobuf/message.h", "libprotobuf-dev")):
        if not (Path("/usr/include") / header).exists():
            pytest.skip(f"{package} is not installed")
    generate_code(tmp_path, "--cpp_out=.", "--grpc_out=.", f"--plugin=protoc-gen-grpc={plugin}")
    sources = sorted(tmp_path.glob("*.pb.cc"))
    libraries = run("pkg-config", "--libs", "grpc++", "protobuf", folder=tmp_path).split()
    made = (compiler, "-std=c++17", "-Wall", "-I.", PROGRAMS / "cancel.cc", *sources, *libraries, "-o", "cancel")
    run(*made, folder=tmp_path)
    assert run("./cancel", server.grpc_url, folder=tmp_path) == "finish reason: cancelled\n"
    assert is_idle(server)


@pytest.mark.server
@pytest.mark.slow
def test_java(server: LocalServer, tmp_path: Path) -> None:
    compiler, plugin, _ = needs("javac", "grpc_java_plugin", "protoc")
    jars = [JARS / f"{name}.jar" for name in LIBRARIES]
    if missing := [jar for jar in jars if not jar.exists()]:
        pytest.skip(f"{missing[0]} is not installed")
    generate_code(tmp_path, "--java_out=.", "--grpc_out=.", f"--plugin=protoc-gen-grpc={plugin}")
    sources = sorted((tmp_path / "inference").glob("*.java"))
    # The generated code names an annotation that newer Java has no more.
    annotation = tmp_path / "javax" / "annotation" / "Generated.java"
    annotation.parent.mkdir(parents=True)
    annotation.write_text(
        "package javax.annotation;\npublic @interface Generated { String value(); String comments(); }\n"
    )
    classpath = ":".join(map(str, jars))
    run(compiler, "-cp", classpath, "-d", "out", PROGRAMS / "Cancel.java", annotation, *sources, folder=tmp_path)
    network = [JARS / f"{name}.jar" for name in NETWORK]
    if missing := [jar for jar in network if not jar.exists()]:  # without one of them it would wait for ever
        pytest.skip(f"it compiles, but {missing[0]} is not installed to run it with")
    everything = ":".join(map(str, ["out", *jars, *network]))
    said = run(*needs("java"), "-cp", everything, "Cancel", server.grpc_url, folder=tmp_path)
    assert said == "finish reason: cancelled\n" and is_idle(server)


@pytest.mark.server
@pytest.mark.slow
def test_go(server: LocalServer, tmp_path: Path) -> None:
    compiler, *_ = needs("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc")
    if not (GO_LIBRARIES / "src" / "google.golang.org" / "grpc").exists():
        pytest.skip("golang-google-grpc-dev is not installed")
    program = tmp_path / "src" / "example.com" / "cancel"
    (program / "inference").mkdir(parents=True)
    package = [f"M{proto}=example.com/cancel/inference" for proto in PROTOS]
    options = ",".join(["paths=source_relative", *package])
    generate_code(tmp_path, f"--go_out={options}:{program}/inference", f"--go-grpc_out={options}:{program}/inference")
    (program / "cancel.go").symlink_to(PROGRAMS / "cancel.go")
    if not (GO_LIBRARIES / "src" / GO_INSECURE).exists():
        (tmp_path / "src" / GO_INSECURE).mkdir(parents=True)
        (tmp_path / "src" / GO_INSECURE / "insecure.go").write_text(GO_PLAIN_CONNECTIONS)
    paths = {"GOPATH": f"{GO_LIBRARIES}:{tmp_path}", "GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off"}
    run(
        "env",
        *(f"{name}={value}" for name, value in paths.items()),
        compiler,
        "build",
        "-o",
        "cancel",
        "example.com/cancel",
        folder=tmp_path,
    )
    assert run("./cancel", server.grpc_url, folder=tmp_path) == "finish reason: cancelled\n"
    assert is_idle(server)


@pytest.mark.server
def test_http_cancels_by_the_id_of_a_grpc_request(server: LocalServer) -> None:
    with Stream(server.grpc_url) as stream:
        request_id = stream.generate(max_tokens=900, ignore_eos=True)
        stream.next()
        body = json.dumps({"control": json.dumps({"cancel": [request_id]})}).encode()
        asked = urllib.request.Request(f"{server.http_url}/v2/models/engine/generate", data=body)
        with urllib.request.urlopen(asked, timeout=SECONDS) as answer:
            assert answer.status == 200
        assert stream.finish(request_id).finish_reason == "cancelled"
    assert is_idle(server)


def test_the_page_names_every_program() -> None:
    page = (ROOT / "docs" / "other-clients.md").read_text()
    assert all(f"(clients/{path.name})" in page for path in PROGRAMS.iterdir())
