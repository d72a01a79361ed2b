"""`make bench-gpu` (python -m autoglm_perf.gpu.bench): decode and prefill on a GPU at GLM-4-9B's shape, random weights.

In one run on one card: its memory bandwidth, our steps by batch size against the floor that it sets, and transformers.
What our steps compute is checked, too (`gpu.checks`).
"""

from __future__ import annotations

import dataclasses
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from autoglm_engine.errors import EngineError
from autoglm_engine.manifest import MANIFEST_NAME, Manifest
from autoglm_export.auto_runtime.random_weights import RandomWeights
from autoglm_export.errors import ExportError
from autoglm_export.parity.device_trial import tried
from autoglm_export.tensorrt.attention import FORMS
from rich.console import Console
from rich.progress import Progress as ProgressBar

from . import generate as gpu_generate
from .bandwidth import Bandwidth, measure_bandwidth
from .checks import WrongAnswer, check_decode, check_prefill
from .device import RUNTIMES, Gpu, NoGpu, best_runtime, find_gpu, why_not_precision, why_not_runtime
from .report import append_jsonl, gpu_machine, show
from .samples import Figure, figure
from .settings import GpuBenchSettings, InvalidSetting, device_bytes, parse_batches
from .shapes import Shape, floor_ms, num_parameters, step_bytes
from .steps import TOKEN, EngineLimits, StepRunner, build_artifact, fill, loaded, some_ids, time_decode, time_prefill

_PRECISIONS = "bf16, fp16, fp8 or int4. [default: bf16, fp16 for onnx]"
_AUTO = "auto"


def measure_ours(runner: StepRunner, settings: GpuBenchSettings, bandwidth: Bandwidth) -> list[Figure]:
    """Decode by batch size, then prefill; each is checked as soon as it is timed. Raises WrongAnswer."""
    ids = some_ids(runner, settings.past)
    for slot in range(settings.num_slots):
        fill(runner, slot, ids)
    taken: dict[int, list[float]] = {batch: [] for batch in settings.batches}
    errors = dict.fromkeys(settings.batches, 0.0)
    for _ in range(settings.rounds):
        for batch in settings.batches:
            seconds, rows = time_decode(
                runner, batch, settings.past, warm_up=settings.warm_up, samples=settings.samples
            )
            taken[batch] += seconds
            held = ids + [TOKEN] * (settings.warm_up + settings.samples)
            errors[batch] = max(errors[batch], check_decode(rows, runner, held, settings.precision))
    name = f"autoglm {settings.runtime}"
    return [
        *(_decode_figure(name, batch, taken[batch], settings, bandwidth, errors[batch]) for batch in settings.batches),
        _prefill_figure(name, runner, settings),
    ]


def _prefill_figure(name: str, runner: StepRunner, settings: GpuBenchSettings) -> Figure:
    seconds, row = time_prefill(runner, settings.prefill_tokens, warm_up=2, samples=5 * settings.rounds)
    error = check_prefill(row, runner, some_ids(runner, settings.prefill_tokens), settings.precision)
    return figure(name, "prefill", 1, settings.prefill_tokens, seconds, error=error)


def measure_generate(settings: GpuBenchSettings, bandwidth: Bandwidth, device: str = "cuda") -> list[Figure]:
    """transformers at the same shape and lengths; in half precision also where ours is quantised."""
    dtype = gpu_generate.DTYPES.get(settings.precision, "float16")
    half = dataclasses.replace(settings, precision={name: key for key, name in gpu_generate.DTYPES.items()}[dtype])
    model = gpu_generate.random_model(settings.spec(), dtype, device)
    figures = []
    for batch in settings.batches:
        steps = settings.warm_up + settings.samples
        taken = gpu_generate.time_generate(model, batch, settings.past, steps, warm_up=3, calls=settings.rounds)
        figures.append(_decode_figure("transformers", batch, taken.decode, half, bandwidth))
    taken = gpu_generate.time_generate(model, 1, settings.prefill_tokens, 1, warm_up=2, calls=5 * settings.rounds)
    figures.append(figure("transformers", "prefill", 1, settings.prefill_tokens, taken.prefill))
    return figures


def _decode_figure(
    system: str,
    batch: int,
    seconds: list[float],
    settings: GpuBenchSettings,
    bandwidth: Bandwidth,
    error: float | None = None,
) -> Figure:
    num_bytes = step_bytes(settings.spec(), settings.precision, batch, settings.mean_length)
    return figure(system, "decode", batch, batch, seconds, floor_ms(num_bytes, bandwidth.read), error)


@contextmanager
def engine(settings: GpuBenchSettings, folder: Path, console: Console) -> Iterator[StepRunner]:
    """Builds the artifact in `folder` where it is not there yet, and loads it. Raises InvalidSetting where another one
    is."""
    if (folder / MANIFEST_NAME).exists():
        check_same(Manifest.load(folder), settings, folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        _build(settings, folder, console)
    device = {"device": "cuda"} if settings.runtime == "onnx" else {}
    with loaded(folder, num_threads=os.cpu_count() or 1, **device) as runner:
        yield runner


def check_same(manifest: Manifest, settings: GpuBenchSettings, folder: Path) -> None:
    wanted = {
        "runtime": settings.runtime,
        "precision": settings.precision,
        "num_slots": settings.num_slots,
        "max_length": settings.max_length,
        "prefill_chunk": settings.prefill_chunk,
        "spec": settings.spec().as_json(),
    }
    for name, value in wanted.items():
        if (actual := getattr(manifest, name)) != value:
            raise InvalidSetting(f"the artifact in {folder} has the {name} {actual}; asked for is {value}")


def _build(settings: GpuBenchSettings, folder: Path, console: Console) -> None:
    """As an export does: with another form of attention where this GPU computes something else with the first."""
    spec = settings.spec()
    is_tensorrt = settings.runtime != "onnx"
    limits = EngineLimits(settings.num_slots, settings.max_length, settings.prefill_chunk)
    with ProgressBar(console=console, transient=True) as bar:
        task = bar.add_task("building", total=1.0)

        def show_share(stage: str, share: float) -> None:
            bar.update(task, description=stage, completed=share)

        def make(form: str | None = None) -> Manifest:
            options = {**_tensorrt_options(settings), "attention": form} if is_tensorrt else {}
            return build_artifact(
                spec,
                RandomWeights(spec),
                folder,
                runtime=settings.runtime,
                precision=settings.precision,
                limits=limits,
                options=options,
                progress=show_share,
            )

        manifest = make()
        if is_tensorrt:
            tried(manifest, make, folder, FORMS, show_share)


def _tensorrt_options(settings: GpuBenchSettings) -> dict[str, Any]:
    """Random weights need no careful rounding, and no more calibration than one short text."""
    options: dict[str, Any] = {"num_candidates": settings.num_candidates}
    if settings.precision == "int4":
        options["int4_rounding"] = "nearest"
    if settings.precision == "fp8":
        options["texts"] = [np.arange(16, dtype=np.int32)]
    return options


def run(settings: GpuBenchSettings, gpu: Gpu, artifact: Path | None, console: Console) -> list[Figure]:
    spec = settings.spec()
    memory = device_bytes(spec, settings.precision, settings.num_slots, settings.max_length)
    console.print(f"{gpu.name}, compute capability {gpu.capability_text}, {gpu.memory_bytes / 1e9:.0f} GB")
    console.print(
        f"{num_parameters(spec) / 1e9:.2f} billion weights in {settings.precision}; {memory / 1e9:.1f} GB with slots"
    )
    bandwidth = measure_bandwidth()
    console.print(
        f"memory: {bandwidth.read / 1e9:.0f} GB/s read, {bandwidth.copy / 1e9:.0f} GB/s copied (read + written)"
    )
    with (
        TemporaryDirectory(prefix="autoglm-gpu-bench-") as temporary,
        engine(settings, artifact or Path(temporary), console) as runner,
    ):
        figures = measure_ours(runner, settings, bandwidth)
    gc.collect()  # our buffers leave the card before transformers fills it
    if settings.baseline:
        console.print("measuring transformers generate (static cache, compiled); compiling takes minutes ...")
        figures += measure_generate(settings, bandwidth)
    show(console, f"{settings.runtime} {settings.precision}, {settings.past} tokens of past", figures)
    append_jsonl(settings.results, gpu_machine(gpu, bandwidth), _as_json(settings), figures)
    console.print(f"figures: {settings.results}")
    return figures


def _as_json(settings: GpuBenchSettings) -> dict[str, Any]:
    return {**dataclasses.asdict(settings), "results": str(settings.results)}


def choose(runtime: str, precision: str | None, gpu: Gpu) -> tuple[str, str]:
    """Runtime and precision, `auto` and None made concrete. Raises NoGpu or InvalidSetting."""
    if runtime != _AUTO and runtime not in RUNTIMES:
        raise InvalidSetting(f"the runtime {runtime!r} is not known; allowed are {', '.join((_AUTO, *RUNTIMES))}")
    chosen = best_runtime(gpu) if runtime == _AUTO else runtime
    precision = precision or RUNTIMES[chosen][2][0]
    reason = why_not_runtime(chosen, gpu) or why_not_precision(precision, chosen, gpu)
    if reason is not None:
        raise NoGpu(reason)
    return chosen, precision


def main(
    runtime: Annotated[str, typer.Option(help="auto, tensorrt, tensorrt-rtx or onnx.")] = _AUTO,
    precision: Annotated[str | None, typer.Option(help=_PRECISIONS)] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes; the largest is the number of slots.")] = "1,2,4,8,16",
    max_length: Annotated[int, typer.Option(help="Tokens a slot holds.")] = 2048,
    past: Annotated[int, typer.Option(help="Tokens in each slot before the first decode step.")] = 512,
    prefill_tokens: Annotated[int, typer.Option(help="Length of the prompt that prefill is timed with.")] = 1024,
    prefill_chunk: Annotated[int, typer.Option(help="Tokens a prefill step computes.")] = 512,
    num_candidates: Annotated[int, typer.Option(help="Most likely tokens that a step tells of.")] = 64,
    samples: Annotated[int, typer.Option(help="Decode steps a batch size and round.")] = 50,
    rounds: Annotated[int, typer.Option(help="Rounds over all batch sizes.")] = 3,
    layers: Annotated[int, typer.Option(help="Layers; fewer for a smaller card.")] = Shape().num_layers,
    hidden: Annotated[int, typer.Option(help="Hidden size, a multiple of the heads' 128.")] = Shape().hidden_size,
    intermediate: Annotated[int, typer.Option(help="Intermediate size.")] = Shape().intermediate_size,
    vocab: Annotated[int, typer.Option(help="Vocabulary size.")] = Shape().vocab_size,
    baseline: Annotated[bool, typer.Option(help="Measure transformers generate, too.")] = True,
    artifact: Annotated[Path | None, typer.Option(help="Keep the built engine here and use it again.")] = None,
    results: Annotated[Path, typer.Option(help="JSON lines are appended here.")] = Path("perf/results/gpu.jsonl"),
) -> None:
    """Decode step time by batch size and prefill rate at GLM-4-9B's shape, beside bandwidth and transformers.

    Examples:

        make bench-gpu

        make bench-gpu BENCH_FLAGS="--precision int4 --batch 1,8,32 --no-baseline"

        make bench-gpu BENCH_FLAGS="--layers 8 --vocab 32000"     # for a card of 8 GB
    """
    with _errors_in_one_sentence():
        gpu = find_gpu()
        runtime, precision = choose(runtime, precision, gpu)
        settings = GpuBenchSettings(
            runtime=runtime,
            precision=precision,
            shape=sized(layers, hidden, intermediate, vocab),
            batches=parse_batches(batch),
            max_length=max_length,
            past=past,
            prefill_tokens=prefill_tokens,
            prefill_chunk=prefill_chunk,
            num_candidates=num_candidates,
            samples=samples,
            rounds=rounds,
            baseline=baseline,
            results=results,
        )
        settings.refuse_what_does_not_fit(gpu)
        run(settings, gpu, artifact, Console())


@contextmanager
def _errors_in_one_sentence() -> Iterator[None]:
    try:
        yield
    except (NoGpu, InvalidSetting, ExportError, EngineError, WrongAnswer) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None


def sized(layers: int, hidden: int, intermediate: int, vocab: int) -> Shape:
    """GLM-4's proportions: heads of 128, of which two share keys and values. Raises InvalidSetting."""
    head_size, kv_heads = Shape().head_size, Shape().num_kv_heads
    if hidden % (head_size * kv_heads) or hidden <= 0:
        raise InvalidSetting(f"the hidden size is {hidden}; it must be a multiple of {head_size * kv_heads}")
    if min(layers, intermediate, vocab) < 1:
        raise InvalidSetting(f"layers {layers}, intermediate {intermediate} and vocab {vocab} must be 1 or more")
    return Shape(layers, hidden, hidden // head_size, kv_heads, head_size, intermediate, vocab)


if __name__ == "__main__":
    typer.run(main)
