"""The tokenizer model: the door in front of the engine. What it does is in `autoglm_engine.door`."""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

RELEASE = "0.1.0"  # of the package that this file goes with
LOG = logging.getLogger("autoglm_engine.model")


class TritonPythonModel:
    def initialize(self, args):
        find_package(args)
        from autoglm_engine.adapter import exits_with_engine
        from autoglm_engine.boards import EngineBoard, served_artifact
        from autoglm_engine.deployment import check_version
        from autoglm_engine.door import Door
        from autoglm_engine.errors import EngineError
        from autoglm_engine.followed_artifact import FollowedArtifact
        from autoglm_engine.neighbours import Neighbours
        from autoglm_engine.seal import Kind
        from autoglm_engine.server_identity import ServerIdentity
        from autoglm_engine.server_process import ServerProcess
        from autoglm_engine.shared_fate import TOKENIZER, SharedFate
        from autoglm_engine.shared_regions import close_to_others
        from autoglm_engine.triton_log import log_to_triton

        check_version(args["model_name"], args["model_version"])
        close_to_others()
        log_to_triton(pb_utils.Logger)
        server = ServerProcess()
        server.end_with_it()
        neighbours = Neighbours.of(args["model_config"])
        identity = ServerIdentity.of_parent(neighbours.engine)
        self.refusal = EngineError
        self.kind = Kind.REQUEST
        folder = neighbours.artifact_folder(args["model_repository"])
        self.doors = FollowedArtifact(folder, Door.load, most=1, let_go=Door.close)
        self.doors.read(lambda: served_artifact(identity))
        self.board = EngineBoard(identity)
        is_shared = exits_with_engine(args["model_config"])
        self.fate = SharedFate(TOKENIZER, neighbours.engine, server.end_after_death) if is_shared else None

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        try:
            tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            board = self.board.current()
            door = self.doors.of(board.artifact)
            admitted = door.admit(tensors, request.parameters(), request.timeout())
            sealed = board.seal.close(self.kind, admitted.request, beside=admitted.token_ids)
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

    def finalize(self):
        if self.fate:
            self.fate.close()


def refused(error):
    code = getattr(pb_utils.TritonError, error.code, pb_utils.TritonError.INTERNAL)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(error.wire_text, code))


def find_package(args):
    """`autoglm_engine` lies in this model's own folder, where that stands alone, else beside the engine; else it is installed."""
    named = json.loads(args["model_config"]).get("parameters", {}).get("engine_model", {})
    model = Path(args["model_repository"])
    places = [folder / "1" for folder in (model, model.parent / named.get("string_value", "engine"))]
    sys.path[:0] = [str(place) for place in places if (place / "autoglm_engine").is_dir()][:1]
    try:
        from autoglm_engine.release import check_release
    except ModuleNotFoundError:
        where = f"neither in {places[0]} nor in {places[1]}, and not installed"
        raise RuntimeError(
            f"there is no package autoglm_engine {RELEASE}: {where} (docs/serving.md, Layouts)"
        ) from None
    check_release(args["model_name"], RELEASE)
