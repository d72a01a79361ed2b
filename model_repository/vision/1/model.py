"""The vision model: images to features. What it does is in `autoglm_engine.triton.images.vision_model`."""

import json
import logging
import os
import sys
import threading
from pathlib import Path

import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
RELEASE = "0.1.0"  # of the package that this file goes with
LOG = logging.getLogger("autoglm_engine.model")
NICE = 5  # running streams go first
LAST_WORDS_SECONDS = 0.5  # in which Triton takes the answers of a process that ends


class TritonPythonModel:
    def initialize(self, args):
        find_package(args)
        from autoglm_engine.system.server_process import ServerProcess
        from autoglm_engine.triton.board.family_watch import VISION, FamilyWatch
        from autoglm_engine.triton.board.finder import ImageBoards
        from autoglm_engine.triton.board.server_identity import ServerIdentity
        from autoglm_engine.triton.deployment import check_version
        from autoglm_engine.triton.images.vision_model import VisionService
        from autoglm_engine.triton.log import log_to_triton
        from autoglm_engine.triton.model_config import device, num_threads
        from autoglm_engine.triton.neighbours import Neighbours
        from autoglm_engine.triton.shared_regions import close_to_others

        check_version(args["model_name"], args["model_version"])
        close_to_others()
        log_to_triton(pb_utils.Logger)
        os.nice(NICE)
        server = ServerProcess()
        server.end_with_it()
        neighbours = Neighbours.of(args["model_config"])
        folder = neighbours.artifact_folder(args["model_repository"])
        boards = ImageBoards(ServerIdentity.of_parent(neighbours.engine))
        config = args["model_config"]
        self.service = VisionService(folder, num_threads(config), boards, device=device(config), end=end_soon)
        self.service.start()
        self.family_watch = FamilyWatch(VISION, neighbours.engine, server.end_after_death)

    def finalize(self):
        self.family_watch.close()
        self.service.close()

    def execute(self, requests):
        for request in requests:
            reply = TritonReply(request.get_response_sender())
            try:
                tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            except Exception as error:  # one request never takes its batch with it
                LOG.exception("a request could not be read")
                reply.fail("INTERNAL", f"the vision model failed: {type(error).__name__}")
                continue
            self.service.take(tensors, reply)


class TritonReply:
    """One response, which is the last. A `send` that raised may be tried again."""

    def __init__(self, sender):
        self.sender = sender

    def send(self, encoded):
        from autoglm_engine.triton.images.feature_memory import write_features

        write_features(encoded.memory, encoded.features, encoded.seconds)
        self.sender.send(flags=FINAL)

    def fail(self, code, message):
        error = pb_utils.TritonError(f"{code}: {message}", getattr(pb_utils.TritonError, code))
        self.sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)


def end_soon():
    """A GPU that failed stays as it is for this process. The server ends with it, as with the engine's."""
    LOG.critical("the GPU failed: the vision model's process ends")
    threading.Timer(LAST_WORDS_SECONDS, os._exit, (1,)).start()


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
