"""The engine model: a decoupled adapter over `autoglm_engine.triton.engine_model`."""

import json
import logging
import os
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

RELEASE = "0.1.0"  # of the package that this file goes with
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

LOG = logging.getLogger("autoglm_engine.model")


class TritonPythonModel:
    def initialize(self, args):
        find_package(args)
        from autoglm_engine.system.server_process import ServerProcess
        from autoglm_engine.system.shared_pools import kept_bytes
        from autoglm_engine.triton.board.server_identity import ServerIdentity
        from autoglm_engine.triton.deployment import check_single_instance, check_version
        from autoglm_engine.triton.engine_model import EngineService
        from autoglm_engine.triton.log import log_to_triton
        from autoglm_engine.triton.metrics_publisher import PublishedMetrics
        from autoglm_engine.triton.model_config import check_shared_memory, engine_settings
        from autoglm_engine.triton.neighbours import Neighbours
        from autoglm_engine.triton.shared_regions import close_to_others, largest_bytes

        check_version(args["model_name"], args["model_version"])
        check_single_instance(args["model_name"], args["model_config"])
        close_to_others()
        max_kept = kept_bytes(largest_bytes())
        log_to_triton(pb_utils.Logger)
        ServerProcess().end_with_it()
        settings, num_threads = engine_settings(args["model_config"])
        neighbours = Neighbours.of(args["model_config"])
        artifact = neighbours.artifact_folder(args["model_repository"])
        check_shared_memory(Path(args["model_repository"]).parent, artifact, settings)
        families = Families({"model": neighbours.ensemble, "version": args["model_version"]})
        self.service = EngineService(
            artifact,
            settings,
            num_threads=num_threads,
            metrics=PublishedMetrics(families.series),
            ask=partial(ask_detokenizer, neighbours.detokenizer),
            embed=partial(ask_embedder, neighbours.embedder),
            encode=partial(ask_vision, neighbours.vision),
            embedder=neighbours.embedder_folder(args["model_repository"]),
            died=self.end_process,
            identity=ServerIdentity.of_parent(args["model_name"]),
            max_kept=max_kept,
        )
        self.service.start()

    def execute(self, requests):
        for request in requests:
            reply = TritonReply(request.get_response_sender())
            try:
                self.take(request, reply)
            except Exception as error:  # one request never takes the others of its batch with it
                LOG.exception("a request could not be answered", extra={"request_id": request.request_id()})
                reply.fail("INTERNAL", f"the engine failed: {type(error).__name__}")

    def take(self, request, reply):
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        if "control" in tensors:
            self.service.control(tensors["control"].reshape(-1)[0], reply)
        elif tensors.keys() == {"token_ids", "request"}:
            ids, packed = tensors["token_ids"].reshape(-1), tensors["request"].reshape(-1)
            self.service.submit(request.request_id(), ids.copy(), packed, reply)
        else:
            reply.fail("INVALID_ARG", "the engine takes control, or token_ids and request")

    def is_ready(self):
        """Asked by Triton from 26.03 on; earlier ones look at nothing but the process."""
        return self.service.healthy

    def finalize(self):
        self.service.close()

    def end_process(self):
        """The tokenizer notices, and ends the server: see `autoglm_engine.triton.board.engine_watch`."""
        LOG.error("the engine cannot go on and ends its process")
        time.sleep(1)  # the last answers pass through the detokenizer
        self.service.abandon()  # a driver that hangs may keep the process from its end
        os._exit(1)


class TritonReply:
    def __init__(self, sender):
        self.sender = sender

    def send(self, packed, *, last):
        response = pb_utils.InferenceResponse([pb_utils.Tensor("event", packed[np.newaxis])])
        self.sender.send(response, flags=FINAL if last else 0)

    def fail(self, code, message):
        error = pb_utils.TritonError(
            f"{code}: {message}", getattr(pb_utils.TritonError, code, pb_utils.TritonError.INTERNAL)
        )
        self.sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)


class Families:
    """Triton's metric families, one for each metric of the engine; they must be kept alive. `labels`: of all of them.
    The families are the whole server's: without such labels several engines would write into one series."""

    def __init__(self, labels):
        self.labels = labels
        self.families = {}

    def series(self, spec, label):
        from autoglm_engine.triton.metrics_publisher import PREFIX, unit_suffix

        if spec.name not in self.families:
            kind = getattr(pb_utils.MetricFamily, spec.kind.name, None)
            if kind is None:  # older than histograms: docs/serving/versions.md has them
                return NoSeries()
            name = f"{PREFIX}{spec.name}{unit_suffix(spec)}"
            self.families[spec.name] = pb_utils.MetricFamily(name=name, description=spec.description, kind=kind)
        labels = {**self.labels, spec.label: label} if spec.label else self.labels
        buckets = {"buckets": list(spec.buckets)} if spec.buckets else {}
        return self.families[spec.name].Metric(labels=labels, **buckets)


class NoSeries:
    """Of a kind that this Triton does not have: it is not published, and nothing else is missing."""

    def observe(self, value):
        pass


def ask_detokenizer(name, packed):
    event = pb_utils.Tensor("event", packed[np.newaxis])
    call = pb_utils.InferenceRequest(model_name=name, requested_output_names=["finish_reason"], inputs=[event])
    response = call.exec()
    if response.has_error():
        raise RuntimeError(response.error().message())


def ask_embedder(name, text):
    tensor = pb_utils.Tensor("text", np.array([[text.encode()]], dtype=np.object_))
    call = pb_utils.InferenceRequest(model_name=name, requested_output_names=["embedding"], inputs=[tensor])
    response = call.exec()
    if response.has_error():
        raise RuntimeError(response.error().message())
    return pb_utils.get_output_tensor_by_name(response, "embedding").as_numpy().reshape(-1)


def ask_vision(name, image, packed):
    """Its answer has no tensors: see `autoglm_engine.triton.images.feature_memory`."""
    from autoglm_engine.triton.images.image_intake import vision_failure

    try:
        inputs = [pb_utils.Tensor(key, value[np.newaxis]) for key, value in (("image", image), ("request", packed))]
        call = pb_utils.InferenceRequest(model_name=name, requested_output_names=["nothing"], inputs=inputs)
        failures = [response.error().message() for response in call.exec(decoupled=True) if response.has_error()]
    except pb_utils.TritonModelException as error:  # shared memory has no room
        raise vision_failure(str(error)) from None
    if failures:
        raise vision_failure(failures[0])


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
