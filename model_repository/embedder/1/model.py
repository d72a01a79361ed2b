"""The embedder model: texts to unit vectors. What it does is in `autoglm_engine.embedder`."""

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
        from autoglm_engine.embedder import Embedder, is_exported
        from autoglm_engine.options.parsing import decode_utf8
        from autoglm_engine.system.server_process import ServerProcess
        from autoglm_engine.triton.board.family_watch import EMBEDDER, FamilyWatch
        from autoglm_engine.triton.deployment import check_version
        from autoglm_engine.triton.log import log_to_triton
        from autoglm_engine.triton.neighbours import Neighbours
        from autoglm_engine.triton.shared_regions import close_to_others

        check_version(args["model_name"], args["model_version"])
        close_to_others()
        log_to_triton(pb_utils.Logger)
        server = ServerProcess()
        server.end_with_it()
        self.text_of = decode_utf8
        neighbours = Neighbours.of(args["model_config"])
        folder = neighbours.embedder_folder(args["model_repository"])
        self.embedder = Embedder(folder) if folder and is_exported(folder) else None
        self.family_watch = FamilyWatch(EMBEDDER, neighbours.engine, server.end_after_death)

    def finalize(self):
        self.family_watch.close()

    def execute(self, requests):
        """One run for the whole batch; a request whose text cannot be read fails alone."""
        answers = [self.read(request) for request in requests]
        texts = [answer for answer in answers if isinstance(answer, str)]
        try:
            rows = iter(self.embedder.embed(texts) if texts else ())
        except Exception as error:
            LOG.exception("texts could not be embedded")
            return [refusal("INTERNAL", f"the embedder failed: {type(error).__name__}") for _ in requests]
        return [answer if not isinstance(answer, str) else embedding(next(rows)) for answer in answers]

    def read(self, request):
        from autoglm_engine.errors import InvalidRequest

        if self.embedder is None:
            return refusal("UNAVAILABLE", "no embedder is exported; make one with `autoglm export-embedder`")
        raw = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
        if raw.shape != (1, 1):
            return refusal("INVALID_ARG", f"text has shape {list(raw.shape)}; it must be [1, 1]")
        try:
            return self.text_of(raw[0, 0], "text")
        except InvalidRequest as error:
            return refusal(error.code, str(error))


def embedding(row):
    return pb_utils.InferenceResponse([pb_utils.Tensor("embedding", row[np.newaxis])])


def refusal(code, sentence):
    error = pb_utils.TritonError(f"{code}: {sentence}", getattr(pb_utils.TritonError, code))
    return pb_utils.InferenceResponse(error=error)


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
