"""A gRPC server in a process of its own that says nothing for as long as the prompt says, in seconds, and then answers;
it can be stopped and continued. `python silent_grpc.py PORT HOW` prints the port once it listens, and each prompt. HOW:
`busy` answers no unary call; `ending` takes no new connection from the first request on."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc


class Silent(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, how: str, server: Any) -> None:
        self._how = how
        self._server = server
        self._ending: asyncio.Task[None] | None = None

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Any) -> pb.ServerLiveResponse:
        if self._how == "busy":
            await asyncio.Event().wait()
        return pb.ServerLiveResponse(live=True)

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[pb.ModelStreamInferResponse]:
        from tests.support.client.client_fakes import response, text_of

        async for request in requests:
            print(text_of(request), flush=True)
            if self._how == "ending" and self._ending is None:
                self._ending = asyncio.create_task(self._server.stop(60))
            yield pb.ModelStreamInferResponse(infer_response=response("", "", 0))
            await asyncio.sleep(float(text_of(request)))
            yield pb.ModelStreamInferResponse(infer_response=response("so it was", "stop", 3))


async def main(port: int, how: str) -> None:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Silent(how, server), server)
    chosen = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(chosen, flush=True)
    await asyncio.Event().wait()


class Running:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.said = process.stdout
        self.port = int(self.said.readline())

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextlib.contextmanager
def silent_server(how: str = "", port: int = 0) -> Iterator[Running]:
    command = [sys.executable, "-m", "tests.support.server.silent_grpc", str(port), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as process:
        try:
            yield Running(process)
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
