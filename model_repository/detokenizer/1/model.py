"""The detokenizer model: events to text. What it does is in `autoglm_engine.pieces`."""

import logging
import sys
from pathlib import Path

import triton_python_backend_utils as pb_utils

LOG = logging.getLogger("autoglm_engine.model")


class TritonPythonModel:
    def initialize(self, args):
        sys.path.insert(0, str(Path(args["model_repository"]).parent / "engine" / "1"))
        from autoglm_engine.adapter import artifact_folder
        from autoglm_engine.boards import EventBoards
        from autoglm_engine.errors import EngineError
        from autoglm_engine.pieces import Pieces
        from autoglm_engine.server_identity import ServerIdentity
        from autoglm_engine.server_process import ServerProcess
        from autoglm_engine.shared_regions import close_to_others
        from autoglm_engine.triton_log import log_to_triton

        close_to_others()
        log_to_triton(pb_utils.Logger)
        ServerProcess().end_with_it()
        self.refusal = EngineError
        boards = EventBoards(ServerIdentity.of_parent())
        self.pieces = Pieces.load(artifact_folder(args["model_repository"]), boards.open)

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        try:
            event = pb_utils.get_input_tensor_by_name(request, "event").as_numpy()
            outputs = self.pieces.outputs(event)
        except self.refusal as error:
            code = getattr(pb_utils.TritonError, error.code, pb_utils.TritonError.INTERNAL)
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(error.wire_text, code))
        except Exception as error:  # one request never takes its batch with it
            LOG.exception("a request could not be answered", extra={"request_id": request.request_id()})
            text = f"INTERNAL: the detokenizer failed: {type(error).__name__}"
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(text))
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
