"""The tokenizer model: the door in front of the engine. What it does is in `autoglm_engine.door`."""

import logging
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

LOG = logging.getLogger("autoglm_engine.model")


class TritonPythonModel:
    def initialize(self, args):
        sys.path.insert(0, str(Path(args["model_repository"]).parent / "engine" / "1"))
        from autoglm_engine.adapter import artifact_folder, exits_with_engine
        from autoglm_engine.boards import EngineBoard
        from autoglm_engine.door import Door
        from autoglm_engine.errors import EngineError
        from autoglm_engine.liveness import EngineWatch
        from autoglm_engine.seal import Kind
        from autoglm_engine.server_identity import ServerIdentity
        from autoglm_engine.server_process import ServerProcess
        from autoglm_engine.shared_regions import close_to_others
        from autoglm_engine.triton_log import log_to_triton

        close_to_others()
        log_to_triton(pb_utils.Logger)
        self.server = ServerProcess()
        self.server.end_with_it()
        identity = ServerIdentity.of_parent()
        self.refusal = EngineError
        self.kind = Kind.REQUEST
        self.door = Door.load(artifact_folder(args["model_repository"]))
        self.board = EngineBoard(identity)
        self.watch = EngineWatch(identity, self.end_server)
        if exits_with_engine(args["model_config"]):
            self.watch.start()

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        try:
            tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            admitted = self.door.admit(tensors, request.parameters())
            sealed = self.board.seal.close(self.kind, admitted.request, beside=admitted.token_ids)
        except self.refusal as error:
            return refused(error)
        except Exception as error:  # one request never takes its batch with it
            LOG.exception("a request could not be answered", extra={"request_id": request.request_id()})
            text = f"INTERNAL: the tokenizer failed: {type(error).__name__}"
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(text))
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("token_ids", admitted.token_ids[np.newaxis]),
                pb_utils.Tensor("request", sealed[np.newaxis]),
            ]
        )

    def end_server(self):
        # Straight to the log: Triton's logger takes its time, and the server may be gone before.
        print(
            "Error: the engine's process died: the server ends, since it cannot answer any more",
            file=sys.stderr,
            flush=True,
        )
        self.server.end()


def refused(error):
    code = getattr(pb_utils.TritonError, error.code, pb_utils.TritonError.INTERNAL)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(error.wire_text, code))
