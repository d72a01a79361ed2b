"""The tokenizer model: the door in front of the engine. What it does is in `autoglm_engine.door`."""

import json
import sys
import traceback
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args):
        sys.path.insert(0, shared_code(args))
        from autoglm_engine.adapter import exits_with_engine
        from autoglm_engine.boards import EngineBoard
        from autoglm_engine.liveness import EngineWatch
        from autoglm_engine.neighbours import Neighbours
        from autoglm_engine.server_identity import ServerIdentity
        from autoglm_engine.server_process import ServerProcess
        from autoglm_engine.shared_regions import close_to_others
        from autoglm_engine.tokenizer_service import TokenizerService

        close_to_others()
        self.server = ServerProcess()
        self.server.end_with_it()
        neighbours = Neighbours.of(args["model_config"])
        identity = ServerIdentity.of_parent(neighbours.engine)
        self.service = TokenizerService.load(
            neighbours.artifact_folder(args["model_repository"]), EngineBoard(identity)
        )
        self.watch = EngineWatch(identity, self.end_server)
        if exits_with_engine(args["model_config"]):
            self.watch.start()

    def execute(self, requests):
        for request in requests:
            reply = TritonReply(request.get_response_sender())
            try:
                tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
                parameters, timeout_us = request.parameters(), request.timeout()
            except Exception as error:  # one request never takes its batch with it
                pb_utils.Logger.log_error(traceback.format_exc())
                reply.fail("INTERNAL", f"the tokenizer failed: {type(error).__name__}")
                continue
            self.service.take(tensors, parameters, timeout_us, reply)

    def finalize(self):
        self.service.close()

    def end_server(self):
        # Straight to the log: Triton's logger takes its time, and the server may be gone before.
        print(
            "Error: the engine's process died: the server ends, since it cannot answer any more",
            file=sys.stderr,
            flush=True,
        )
        self.server.end()


class TritonReply:
    """One response, which is the last."""

    def __init__(self, sender):
        self.sender = sender

    def send(self, token_ids, request):
        tensors = [pb_utils.Tensor("token_ids", token_ids[np.newaxis]), pb_utils.Tensor("request", request[np.newaxis])]
        self.sender.send(pb_utils.InferenceResponse(tensors), flags=FINAL)

    def fail(self, code, message):
        status = getattr(pb_utils.TritonError, code, pb_utils.TritonError.INTERNAL)
        error = pb_utils.TritonError(f"{code}: {message}", status)
        self.sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)


def shared_code(args):
    """The folder of the package, which lies beside the engine."""
    named = json.loads(args["model_config"]).get("parameters", {}).get("engine_model", {})
    return str(Path(args["model_repository"]).parent / named.get("string_value", "engine") / "1")
