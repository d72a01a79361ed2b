"""Looks whether a local server is well: over gRPC, which every server has, and at its processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from autoglm_client.transport.requests import control_request
from autoglm_client.transport.tls import TLS
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from autoglm_cli.procfs import ProcFs

_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # else a server that did not listen yet is left alone for a while
    ("grpc.enable_http_proxy", 0),
)


def server_is_ready(address: str, timeout: float = 2.0, *, tls: TLS | None = None) -> bool:
    """Whether the server says that all its models are loaded."""
    with _stub(address, tls) as stub:
        try:
            return bool(stub.ServerReady(pb.ServerReadyRequest(), timeout=timeout).ready)
        except grpc.RpcError:
            return False


def engine_answers(address: str, timeout: float, model: str, *, tls: TLS | None = None) -> bool:
    """Whether the engine behind the ensemble `model` answers a control request: its process lives and takes
    requests."""
    with _stub(address, tls) as stub:
        try:
            answers = list(stub.ModelStreamInfer(iter([control_request({"stats": True}, model)]), timeout=timeout))
        except grpc.RpcError:
            return False
    return bool(answers) and not any(answer.error_message for answer in answers)


@contextmanager
def _stub(address: str, tls: TLS | None) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    if tls is None:
        opened = grpc.insecure_channel(address, options=_OPTIONS)
    else:
        opened = grpc.secure_channel(address, tls.credentials(), options=(*_OPTIONS, *tls.channel_options))
    with opened as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def stub_processes(server_pid: int) -> dict[int, str]:
    """The processes of the server's Python models: pid -> model. Those that ended are left out."""
    proc = ProcFs()
    found: dict[int, str] = {}
    for pid in proc.children(server_pid):
        arguments = proc.command_line(pid)  # empty for one that ended
        model_file = next((Path(a) for a in arguments if a.endswith("/model.py")), None)
        if model_file:
            found[pid] = model_file.parent.parent.name
    return found
