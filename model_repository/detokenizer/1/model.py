"""The detokenizer model: events to text. What it does is in `autoglm_engine.triton.detokenizer_model`."""

import json
import logging
import sys
from pathlib import Path

import triton_python_backend_utils as pb_utils

RELEASE = "0.1.0"  # of the package that this file goes with
LOG = logging.getLogger("autoglm_engine.model")


class TritonPythonModel:
    def initialize(self, args):
        find_package(args)
        from autoglm_engine.errors import EngineError
        from autoglm_engine.system.server_process import ServerProcess
        from autoglm_engine.system.shared_pools import room_bytes
        from autoglm_engine.triton.board.family_watch import DETOKENIZER, FamilyWatch
        from autoglm_engine.triton.board.finder import EventBoards, served_artifact
        from autoglm_engine.triton.board.server_identity import ServerIdentity
        from autoglm_engine.triton.deployment import check_preserves_order, check_single_instance, check_version
        from autoglm_engine.triton.detokenizer_model import Detokenizer, load_text
        from autoglm_engine.triton.followed_artifact import FollowedArtifact
        from autoglm_engine.triton.log import log_to_triton
        from autoglm_engine.triton.neighbours import Neighbours
        from autoglm_engine.triton.shared_regions import close_to_others, largest_bytes

        check_version(args["model_name"], args["model_version"])
        check_single_instance(args["model_name"], args["model_config"])
        check_preserves_order(args["model_name"], args["model_config"])
        close_to_others()
        room = room_bytes(largest_bytes())
        log_to_triton(pb_utils.Logger)
        server = ServerProcess()
        server.end_with_it()
        self.refusal = EngineError
        neighbours = Neighbours.of(args["model_config"])
        identity = ServerIdentity.of_parent(neighbours.engine)
        boards = EventBoards(identity)
        texts = FollowedArtifact(neighbours.artifact_folder(args["model_repository"]), load_text, most=3)
        texts.read(lambda: served_artifact(identity))
        self.pieces = Detokenizer(texts.of, boards.open, room=room)
        self.family_watch = FamilyWatch(DETOKENIZER, neighbours.engine, server.end_after_death)

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
            LOG.exception("a request could not be answered", extra={"request_id": request.request_id()})
            text = f"INTERNAL: the detokenizer failed: {type(error).__name__}"
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(text))
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])

    def finalize(self):
        self.family_watch.close()


def find_package(args):
    """`autoglm_engine` lies in this model's own folder, where that stands alone, else beside the engine; else it is
    installed."""
    named = json.loads(args["model_config"]).get("parameters", {}).get("engine_model", {})
    model = Path(args["model_repository"])
    places = [folder / "1" for folder in (model, model.parent / named.get("string_value", "engine"))]
    sys.path[:0] = [str(place) for place in places if (place / "autoglm_engine").is_dir()][:1]
    try:
        from autoglm_engine.release import check_release
    except ModuleNotFoundError:
        where = f"neither in {places[0]} nor in {places[1]}, and not installed"
        raise RuntimeError(
            f"there is no package autoglm_engine {RELEASE}: {where} (docs/serving/running.md, Layouts)"
        ) from None
    check_release(args["model_name"], RELEASE)
