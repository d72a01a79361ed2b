"""The vision tower as a TensorRT engine on one GPU. Its tensors are described in `autoglm_export.tensorrt.vision`.

An image is one call: its patches and what its grid says are written into pinned memory and copied to the GPU, one
context computes, and the features are copied back. All memory is allocated at load, for the largest image; nothing is
captured, for hardly two images are of one size. The first failure of the GPU is final.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoglm_engine.errors import ArtifactError, DeviceError, EngineError, InvalidRequest
from autoglm_engine.manifest import Manifest, VisionSettings
from autoglm_engine.runners.cuda.api import Cuda
from autoglm_engine.runners.cuda.memory import DeviceMemory, free_all
from autoglm_engine.vision.geometry import patch_order
from autoglm_engine.vision.processor import Patches
from autoglm_engine.vision.stop import Stop
from autoglm_engine.vision.tower import Features, geometry_inputs, input_widths

from .calls import Call
from .engine_plan import EnginePlan
from .kernel_cache import KernelCache
from .load import check_gpu, kernels_key
from .step_buffers import Format, Region

_IMAGE = 0  # the only profile
_FINAL = "the GPU failed before and this process can no longer use it; restart the server"


def open_tensorrt_tower(
    folder: Path, manifest: Manifest, trt: Any, cuda: Cuda, environ: Mapping[str, str] = os.environ
) -> TensorRTTower:
    """`trt`: the module. The tower closes `cuda`, and so does a failure to make one. Raises ArtifactError."""
    settings = manifest.vision
    assert settings is not None, "the artifact has no vision tower"
    cleanup = ExitStack()
    cleanup.callback(cuda.close)
    try:
        check_gpu(cuda, manifest)
        kernels = KernelCache(kernels_key(cuda, manifest, settings.model), environ)
        plan = EnginePlan(
            trt,
            cuda,
            folder / settings.model,
            kernels,
            check=lambda engine: check_tower(engine, settings),
            num_profiles=1,
            captured=(),
        )
        cleanup.callback(plan.close)
        cleanup.callback(plan.keep_kernels)
        return TensorRTTower(plan, cuda, settings, cleanup)
    except DeviceError as error:
        free_all(cuda, cleanup)
        raise ArtifactError(_why_not(error, settings)) from error
    except BaseException:
        free_all(cuda, cleanup)
        raise


class TensorRTTower:
    """See `vision.tower.Tower`."""

    def __init__(self, plan: EnginePlan, cuda: Cuda, settings: VisionSettings, cleanup: ExitStack) -> None:
        """`cleanup` is what `close` unwinds, what was made last first. Runs the smallest and the largest image, so that
        what does not fit shows here."""
        self._cuda, self._settings, self._cleanup = cuda, settings, cleanup
        self._most_tokens = most = settings.largest_tokens
        self._is_closed = self._has_failed = False
        memory = DeviceMemory(cuda, cleanup)
        self._inputs = _Block(cuda, memory, input_formats(settings, most * settings.merge_size**2))
        self._outputs = _Block(cuda, memory, [_features(settings, most)])
        self._done = memory.event()
        activation_bytes = plan.activation_bytes
        activations = memory.allocate("activations", activation_bytes)
        self._call = Call(plan, cuda, plan.create_context(_IMAGE, activations, activation_bytes))
        cleanup.callback(self._call.close)
        self._prepare(most)
        plan.keep_kernels()
        memory.note("weights", plan.weight_bytes)
        self.memory: Mapping[str, int] = memory.summary

    @property
    def settings(self) -> VisionSettings:
        return self._settings

    def encode(self, patches: Patches, stop: Stop | None = None) -> Features:
        """`stop` is looked at before: an image is on the GPU for a tenth of a second."""
        if self._is_closed:
            raise ValueError("the tower is closed")
        if self._has_failed:
            raise DeviceError(_FINAL)
        if (num_tokens := len(patches.values) // self._settings.merge_size**2) > self._most_tokens:
            raise InvalidRequest(
                f"an image has {num_tokens} tokens; this vision tower takes at most {self._most_tokens}"
            )
        if stop is not None:
            stop.check()
        try:
            features = self._encode(patches)
        except EngineError:
            self._has_failed = True
            raise
        if not np.isfinite(features).all():
            raise EngineError("what the vision tower makes of an image is no finite number")
        return features

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            free_all(self._cuda, self._cleanup)

    def _encode(self, patches: Patches) -> Features:
        given = tower_inputs(patches, self._settings)
        region = Region.at(0, input_formats(self._settings, len(patches.values)))
        for cell in region.cells:
            cell.view(self._inputs.host)[:] = given[cell.name]
        self._inputs.upload(region)
        (features,) = self._run(region, len(patches.values)).cells
        return features.view(self._outputs.host).copy()

    def _run(self, inputs: Region, num_patches: int) -> Region:
        """Computes what lies in the input block; waits for the features."""
        outputs = Region.at(0, [_features(self._settings, num_patches // self._settings.merge_size**2)])
        self._call.set_shapes({cell.name: cell.shape for cell in inputs.cells})
        self._call.set_addresses({**self._inputs.addresses(inputs), **self._outputs.addresses(outputs)})
        self._call.enqueue()
        self._outputs.download(outputs)
        self._cuda.record(self._done)
        self._cuda.wait(self._done)
        return outputs

    def _prepare(self, most_tokens: int) -> None:
        """Over zeros."""
        for num_tokens in (1, most_tokens):
            num_patches = num_tokens * self._settings.merge_size**2
            self._inputs.clear()
            self._run(Region.at(0, input_formats(self._settings, num_patches)), num_patches)


class _Block:
    """Tensors side by side on the GPU, and the same in pinned memory. `formats`: of the largest."""

    def __init__(self, cuda: Cuda, memory: DeviceMemory, formats: list[Format]) -> None:
        self._cuda, size = cuda, Region.at(0, formats).end
        self._device, self.host = memory.allocate("image", size), memory.pinned(size)
        self._size = size

    def addresses(self, region: Region) -> dict[str, int]:
        return {cell.name: self._device + cell.offset for cell in region.cells}

    def clear(self) -> None:
        self._cuda.clear(self._device, self._size)

    def upload(self, region: Region) -> None:
        self._cuda.copy(self._device, int(self.host.ctypes.data), region.end)

    def download(self, region: Region) -> None:
        self._cuda.copy(int(self.host.ctypes.data), self._device, region.end)


def input_formats(settings: VisionSettings, num_patches: int) -> list[Format]:
    return [(name, np.float32, (num_patches, width)) for name, width in input_widths(settings).items()]


def tower_inputs(patches: Patches, settings: VisionSettings) -> dict[str, npt.NDArray[np.float32]]:
    """Of each patch its own weights of the table's rows and columns, where a graph has those of the grid's."""
    given = geometry_inputs(patches.grid, settings)
    rows, columns = np.divmod(patch_order(patches.grid, settings.merge_size), patches.grid[1])
    return {
        "patches": patches.values,
        "row_weights": given["row_weights"][rows],
        "column_weights": given["column_weights"][columns],
        "rope_cos": given["rope_cos"],
        "rope_sin": given["rope_sin"],
    }


def _features(settings: VisionSettings, num_tokens: int) -> Format:
    return "features", np.float32, (num_tokens, settings.hidden_size)


def check_tower(engine: Any, settings: VisionSettings) -> None:
    """Raises ArtifactError where the engine's tensors are not those that the manifest tells of."""
    expected = {**input_widths(settings), "features": settings.hidden_size}
    found = {
        name: int(tuple(engine.get_tensor_shape(name))[-1])
        for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors))
    }
    if differing := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        name = differing[0]
        raise ArtifactError(
            f"the artifact's vision tower has {name} of width {found.get(name)}, its manifest {expected.get(name)}; "
            "export it again"
        )


def _why_not(error: DeviceError, settings: VisionSettings) -> str:
    if not error.is_out_of_memory:
        return str(error)
    return (
        f"there is not enough GPU memory for the vision tower and images of {settings.max_tokens} tokens ({error}); "
        "export it with --max-pixels of less, or with fewer or shorter slots"
    )
