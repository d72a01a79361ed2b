"""From a network to a plan: profiles, target GPUs, progress, timing cache, and what went wrong in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoglm_export.errors import ExportError, NoAttentionKernel
from autoglm_export.runtimes import Progress

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """The shapes that a range of calls has: smallest, most usual and largest of each input."""

    name: str
    smallest: Mapping[str, Shape]
    usual: Mapping[str, Shape]
    largest: Mapping[str, Shape]


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """`compute_capabilities`: as TensorRT names them ("SM89"); none: for the GPU of this machine."""

    profiles: tuple[Profile, ...]
    compute_capabilities: tuple[str, ...] = ()
    weight_streaming: bool = False
    timing_cache: Path | None = None
    optimization_level: int | None = None  # None: TensorRT's own
    rounds_float32: bool = True  # to TF32 in products, as TensorRT does unless told otherwise


class Builder:
    """TensorRT's builder with a log of its own. Raises ExportError where TensorRT cannot start at all."""

    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.log = _log_of(trt)
        try:
            self._builder = trt.Builder(self.log)
        except Exception as error:  # pybind turns a null pointer into a TypeError
            raise ExportError(explained(self.log.errors or [str(error)])) from None
        self.handle = self._builder

    def build(self, network: Any, path: Path, settings: BuildSettings, progress: Progress) -> None:
        """Write the plan of `network` to `path`."""
        self.log.errors.clear()  # starting without a GPU logs one too
        config = self._config(settings)
        monitor = _monitor_of(self.trt, progress)
        config.progress_monitor = monitor
        with path.open("wb") as stream:
            built = self._builder.build_serialized_network_to_stream(network, config, _writer_of(self.trt, stream))
        if not built or not path.stat().st_size:
            raise failure(self.log.errors)
        if settings.timing_cache is not None:
            settings.timing_cache.write_bytes(bytes(config.get_timing_cache().serialize()))
        progress("build engine", 1.0)

    def _config(self, settings: BuildSettings) -> Any:
        config = self._builder.create_builder_config()
        for profile in settings.profiles:
            config.add_optimization_profile(self._profile(profile))
        if settings.compute_capabilities:
            config.num_compute_capabilities = len(settings.compute_capabilities)
            for index, name in enumerate(settings.compute_capabilities):
                config.set_compute_capability(getattr(self.trt.ComputeCapability, name), index)
        if settings.optimization_level is not None:
            config.builder_optimization_level = settings.optimization_level
        if hasattr(self.trt.BuilderFlag, "REQUIRE_USER_ALLOCATION") and not settings.weight_streaming:
            # TensorRT-RTX: else no CUDA graph can be captured. Streamed weights do without graphs there.
            config.set_flag(self.trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        if not settings.rounds_float32:
            config.clear_flag(self.trt.BuilderFlag.TF32)
        if settings.weight_streaming:
            config.set_flag(self.trt.BuilderFlag.WEIGHT_STREAMING)
        if (file := settings.timing_cache) is not None:
            config.set_timing_cache(config.create_timing_cache(file.read_bytes() if file.exists() else b""), False)
        return config

    def _profile(self, profile: Profile) -> Any:
        made = self._builder.create_optimization_profile()
        for name, largest in profile.largest.items():
            made.set_shape(name, profile.smallest[name], profile.usual[name], largest)
        return made


_OUT_OF_MEMORY = "memory ran out; take fewer or shorter slots, or a smaller precision"
_ELSEWHERE = "build on the machine with the GPU, or ahead of time with --runtime tensorrt-rtx --compute-capability"
_NO_KERNEL = "not supported by a dedicated kernel"
# What TensorRT's messages mean for a user: the first row whose words are in them.
_MEANINGS = (
    ("HW-specific datatypes", "a target GPU lacks a data type of this precision"),
    ("out of memory", _OUT_OF_MEMORY),
    ("OutOfMemory", _OUT_OF_MEMORY),
    ("bad_alloc", _OUT_OF_MEMORY),
    ("IAttention requires", "attention needs a GPU of compute capability 8.0 or newer"),
    (_NO_KERNEL, "TensorRT has no fused attention kernel for this shape and type"),
)
# Said by builds that need no GPU, too; so they count only where nothing else was said.
_NO_GPU_MEANINGS = (
    ("cudaError 35", f"no NVIDIA driver answers on this machine; {_ELSEWHERE}"),
    ("CUDA initialization failure", f"no GPU answers on this machine; {_ELSEWHERE}"),
    ("no CUDA-capable device", f"no GPU is in this machine; {_ELSEWHERE}"),
)


def failure(errors: Sequence[str]) -> ExportError:
    is_of_attention = any(_NO_KERNEL in error for error in errors)
    return (NoAttentionKernel if is_of_attention else ExportError)(explained(errors))


def explained(errors: Sequence[str]) -> str:
    """One sentence of what TensorRT logged; what it means and what to do where that is known."""
    others = [error for error in errors if not _meaning(error, _NO_GPU_MEANINGS)]
    said = " ".join(" ".join(others or errors).split())
    meaning = _meaning(said, _MEANINGS if others else _NO_GPU_MEANINGS)
    return f"the engine was not built: {meaning or said[:500] or 'TensorRT gave no reason'}"


def _meaning(said: str, meanings: Sequence[tuple[str, str]]) -> str:
    return next((meaning for words, meaning in meanings if words.lower() in said.lower()), "")


def _log_of(trt: Any) -> Any:
    class Log(trt.ILogger):
        """Keeps errors; TensorRT's chatter goes nowhere."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)

    return Log()


def _monitor_of(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Phases nest; the outermost phase's steps are the fraction shown, refined by the phase inside it."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._tracker = NestedProgress(progress)

        def phase_start(self, name: str, parent: str | None, num_steps: int) -> None:
            self._tracker.start(name, parent, num_steps)

        def step_complete(self, name: str, step: int) -> bool:
            self._tracker.step(name, step)
            return True

        def phase_finish(self, name: str) -> None:
            self._tracker.finish(name)

    return Monitor()


class NestedProgress:
    """Nested phases as one fraction that never falls: a phase fills the step of its parent that it runs in."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._spans: dict[str, tuple[float, float, int]] = {}  # phase -> where it begins, its share, its steps
        self._shown = 0.0

    def start(self, name: str, parent: str | None, num_steps: int) -> None:
        begin, share = 0.0, 1.0
        if parent in self._spans:
            parent_begin, parent_share, parent_steps = self._spans[parent]
            begin, share = max(self._shown, parent_begin), parent_share / max(parent_steps, 1)
        self._spans[name] = (begin, share, num_steps)

    def step(self, name: str, step: int) -> None:
        begin, share, num_steps = self._spans.get(name, (0.0, 0.0, 1))
        self._show(begin + share * (step + 1) / max(num_steps, 1))

    def finish(self, name: str) -> None:
        begin, share, _ = self._spans.pop(name, (0.0, 0.0, 1))
        self._show(begin + share)

    def _show(self, fraction: float) -> None:
        self._shown = min(max(self._shown, fraction), 1.0)
        self._progress("build engine", self._shown)


def _writer_of(trt: Any, stream: Any) -> Any:
    class Writer(trt.IStreamWriter):
        """The plan goes straight to its file: it may be larger than the memory that is left."""

        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: Any) -> int:
            return int(stream.write(data))

    return Writer()
