"""The tokenizer model: the door in front of the engine. What it does is in `autoglm_engine.triton.tokenizer_model`."""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
RELEASE = "0.1.0"  # of the package that this file goes with
SMALL_BYTES = 4096
LOG = logging.getLogger("autoglm_engine.model")


class TritonPythonModel:
    def initialize(self, args):
        find_package(args)
        from autoglm_engine.system.server_process import ServerProcess
        from autoglm_engine.system.shared_pools import room_bytes
        from autoglm_engine.triton.board.family_watch import TOKENIZER, FamilyWatch
        from autoglm_engine.triton.board.finder import EngineBoard, served_artifact
        from autoglm_engine.triton.board.server_identity import ServerIdentity
        from autoglm_engine.triton.deployment import check_version
        from autoglm_engine.triton.log import log_to_triton
        from autoglm_engine.triton.model_config import exits_with_engine
        from autoglm_engine.triton.neighbours import Neighbours
        from autoglm_engine.triton.shared_regions import close_to_others, largest_bytes
        from autoglm_engine.triton.tokenizer_service import TokenizerService

        check_version(args["model_name"], args["model_version"])
        close_to_others()
        room = room_bytes(largest_bytes())
        log_to_triton(pb_utils.Logger)
        server = ServerProcess()
        server.end_with_it()
        neighbours = Neighbours.of(args["model_config"])
        identity = ServerIdentity.of_parent(neighbours.engine)
        folder = neighbours.artifact_folder(args["model_repository"])
        self.service = TokenizerService(folder, EngineBoard(identity), room)
        self.service.read(lambda: served_artifact(identity))
        is_shared = exits_with_engine(args["model_config"])
        self.family_watch = FamilyWatch(TOKENIZER, neighbours.engine, server.end_after_death) if is_shared else None

    def execute(self, requests):
        for request in requests:
            reply = TritonReply(request.get_response_sender(), request.request_id())
            try:
                tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
                parameters, timeout_us = request.parameters(), request.timeout()
            except Exception as error:  # one request never takes its batch with it
                LOG.exception("a request could not be read", extra={"request_id": reply.request_id})
                reply.fail("INTERNAL", f"the tokenizer failed: {type(error).__name__}")
                continue
            self.service.take(tensors, parameters, timeout_us, reply)

    def finalize(self):
        self.service.close()
        if self.family_watch:
            self.family_watch.close()


class TritonReply:
    """One response, which is the last. A `send` that raised may be tried again."""

    def __init__(self, sender, request_id):
        self.sender = sender
        self.is_sent = False
        self.request_id = request_id

    def send(self, token_ids, request):
        tensors = [pb_utils.Tensor("token_ids", token_ids[np.newaxis]), pb_utils.Tensor("request", request[np.newaxis])]
        response = pb_utils.InferenceResponse(tensors)
        if token_ids.nbytes + request.nbytes <= SMALL_BYTES:
            self.sender.send(response, flags=FINAL)
            return
        # Where shared memory has no room just now: with the final flag Triton would close the sender all the same.
        if not self.is_sent:
            self.sender.send(response)
            self.is_sent = True
        self.sender.send(flags=FINAL)

    def fail(self, code, message):
        status = getattr(pb_utils.TritonError, code, pb_utils.TritonError.INTERNAL)
        error = pb_utils.TritonError(f"{code}: {message}", status)
        self.sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)


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
