"""The vision tower: patches of one image -> a row of features for each of its tokens.

`Tower` is the seam: ONNX Runtime computes it here; another runtime (`runners.towers`) gets the same patches and grid.
The inputs of its graph are described in `autoglm_export.onnx.vision`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from autoglm_engine.errors import ArtifactError, EngineError
from autoglm_engine.manifest import VisionSettings

from .geometry import INTERPOLATIONS, patch_order, rope_tables
from .pictures import NUM_CHANNELS
from .processor import Patches
from .stop import Stop

Features = npt.NDArray[np.float32]
CPU_KERNELS = ("CPUExecutionProvider",)


class Tower(Protocol):
    @property
    def settings(self) -> VisionSettings: ...

    def encode(self, patches: Patches, stop: Stop | None = None) -> Features:
        """float32 [number of tokens, hidden_size]. Raises EngineError where that fails, or gives numbers that are not
        finite, and GivenUp soon after `stop` was asked for. Not for use from two threads at once."""
        ...

    def close(self) -> None: ...


class OnnxTower:
    """`providers`: ONNX Runtime's, the first choice first; `session` is its own, which tells those that it has."""

    def __init__(
        self, path: Path, settings: VisionSettings, *, num_threads: int, providers: Sequence[Any] = CPU_KERNELS
    ) -> None:
        self._settings = settings
        self.session: Any = _open_session(path, num_threads, providers)
        _check_interface(self.session, settings)

    @property
    def settings(self) -> VisionSettings:
        return self._settings

    def encode(self, patches: Patches, stop: Stop | None = None) -> Features:
        if self.session is None:
            raise ValueError("the tower is closed")
        inputs = {"patches": patches.values, **geometry_inputs(patches.grid, self._settings)}
        features = self._run(inputs, stop or Stop())
        if not np.isfinite(features).all():
            raise EngineError("what the vision tower makes of an image is no finite number")
        return features

    def close(self) -> None:
        self.session = None

    def _run(self, inputs: dict[str, npt.NDArray[Any]], stop: Stop) -> Features:
        """ONNX Runtime looks between two operators whether it is to end."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        with stop.ended_by(lambda: setattr(options, "terminate", True)):
            try:
                (features,) = self.session.run(["features"], inputs, options)
            except Exception as error:  # ONNX Runtime's, for lack of memory
                stop.check()
                raise EngineError(f"the vision tower failed: {error}") from None
        found: Features = features
        return found


def geometry_inputs(grid: tuple[int, int], settings: VisionSettings) -> dict[str, npt.NDArray[Any]]:
    """Every input of the tower's graph but the patches."""
    cosines, sines = rope_tables(grid, settings.merge_size, settings.head_size, settings.rope_theta)
    return {
        "row_weights": INTERPOLATIONS[settings.interpolation](grid[0], settings.position_table_size),
        "column_weights": INTERPOLATIONS[settings.interpolation](grid[1], settings.position_table_size),
        "order": patch_order(grid, settings.merge_size),
        "rope_cos": cosines,
        "rope_sin": sines,
    }


def _open_session(path: Path, num_threads: int, providers: Sequence[Any]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # what a large image takes is given back after it
    options.enable_mem_pattern = False  # no two images need be of one size
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the engine has the cores
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:
        raise ArtifactError(f"{path} cannot be loaded by ONNX Runtime {onnxruntime.__version__}: {error}") from None


def input_widths(settings: VisionSettings) -> dict[str, int]:
    """Of every input but `order`."""
    return {
        "patches": NUM_CHANNELS * settings.patch_size**2,
        **dict.fromkeys(("row_weights", "column_weights"), settings.position_table_size),
        **dict.fromkeys(("rope_cos", "rope_sin"), settings.head_size // 2),
    }


def _check_interface(session: Any, settings: VisionSettings) -> None:
    """Raises ArtifactError, naming a tensor that is not as wide as the manifest says."""
    widths = {**input_widths(settings), "features": settings.hidden_size}
    tensors = (*session.get_inputs(), *session.get_outputs())
    found = {tensor.name: tensor.shape[-1] for tensor in tensors if tensor.name != "order"}
    if differing := sorted(name for name in widths.keys() | found.keys() if widths.get(name) != found.get(name)):
        name = differing[0]
        raise ArtifactError(
            f"the artifact's vision tower has {name} of width {found.get(name)}, its manifest {widths.get(name)}; "
            "export it again"
        )
