"""The detokenizer model: events to text. What it does is in `autoglm_engine.pieces`."""

import json
import sys
import traceback
from pathlib import Path

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        sys.path.insert(0, shared_code(args))
        from autoglm_engine.boards import EventBoards
        from autoglm_engine.errors import EngineError
        from autoglm_engine.neighbours import Neighbours
        from autoglm_engine.pieces import Pieces
        from autoglm_engine.server_identity import ServerIdentity
        from autoglm_engine.server_process import ServerProcess
        from autoglm_engine.shared_regions import close_to_others

        close_to_others()
        ServerProcess().end_with_it()
        self.refusal = EngineError
        neighbours = Neighbours.of(args["model_config"])
        boards = EventBoards(ServerIdentity.of_parent(neighbours.engine))
        self.pieces = Pieces.load(neighbours.artifact_folder(args["model_repository"]), boards.open)

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        try:
            event = pb_utils.get_input_tensor_by_name(request, "event").as_numpy()
            outputs = self.pieces.outputs(event, request.requested_output_names())
        except self.refusal as error:
            code = getattr(pb_utils.TritonError, error.code, pb_utils.TritonError.INTERNAL)
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(error.wire_text, code))
        except Exception as error:  # one request never takes its batch with it
            pb_utils.Logger.log_error(traceback.format_exc())
            text = f"INTERNAL: the detokenizer failed: {type(error).__name__}"
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(text))
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])


def shared_code(args):
    """The folder of the package, which lies beside the engine."""
    named = json.loads(args["model_config"]).get("parameters", {}).get("engine_model", {})
    return str(Path(args["model_repository"]).parent / named.get("string_value", "engine") / "1")
