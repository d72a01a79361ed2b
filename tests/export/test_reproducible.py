"""What the exporter computes has the same bits on every CPU: the compiled kernels against their definition in numpy."""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from autoglm_engine.runners.native.library import TARGET_VARIABLE
from autoglm_export import compiler
from autoglm_export.native.lowering import write_program
from autoglm_export.onnx.lowering import write_onnx
from autoglm_export.quantize.rotation import hadamard, orthogonalised
from autoglm_export.quantize.rounding import LARGEST_GROUP, groups_of
from autoglm_export.reproducible import kernels, sine_cosine
from autoglm_export.reproducible.compiled import CompiledKernels
from autoglm_export.reproducible.interface import NotPositiveDefinite
from autoglm_export.reproducible.reference import ReferenceKernels, round_to_12_bits
from autoglm_export.reproducible.transcendental import power
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runners.test_native import BASE, SPECS, VOCAB_SIZE, random_weights

REFERENCE = ReferenceKernels()
COMPILED = [CompiledKernels(target, threads) for target in compiler.runnable_targets() for threads in (1, 2, 3)]
SIZES = st.integers(1, 70)
SEEDS = st.integers(0, 2**32 - 1)


def random(*shape: int, seed: int = 0, spread: float = 1.0) -> Any:
    """Of magnitudes that differ by `spread` orders and more."""
    generator = np.random.default_rng(seed)
    return (generator.standard_normal(shape) * 10 ** (spread * generator.standard_normal(shape))).astype(np.float32)


def assert_same_bits(name: str, *arguments: Any) -> Any:
    expected = getattr(REFERENCE, name)(*arguments)
    for each in COMPILED:
        made = getattr(each, name)(*arguments)
        assert made.dtype == expected.dtype
        np.testing.assert_array_equal(made.view(np.uint8), expected.view(np.uint8), err_msg=each.description)
    return expected


@settings(deadline=None, max_examples=40)
@given(rows=SIZES, columns=SIZES, num_k=st.integers(1, 600), seed=SEEDS)
def test_products(rows: int, columns: int, num_k: int, seed: int) -> None:
    x, w = random(rows, num_k, seed=seed), random(columns, num_k, seed=seed + 1)
    made = assert_same_bits("products", x, w)
    scale = np.abs(x).astype(np.float64) @ np.abs(w.T).astype(np.float64)
    assert (np.abs(made - x.astype(np.float64) @ w.T.astype(np.float64)) <= 2**-10 * scale).all()


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(1, 300), width=SIZES, data=st.data())
def test_gram(rows: int, width: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, width - 1))
    x, group = random(rows, width, seed=width), slice(first, data.draw(st.integers(first + 1, width)))
    made = assert_same_bits("gram", x, group)
    np.testing.assert_array_equal(made, made.T)
    np.testing.assert_array_equal(made, REFERENCE.products(x[:, group].T, x[:, group].T))


@settings(deadline=None, max_examples=20)
@given(size=st.integers(1, 200), seed=SEEDS)
def test_feedback(size: int, seed: int) -> None:
    x = random(size + 5, size, seed=seed, spread=0.2).astype(np.float64)
    matrix = (x.T @ x + 0.1 * np.eye(size)).astype(np.float32)
    made = assert_same_bits("feedback", matrix)
    factor = np.linalg.cholesky(matrix.astype(np.float64))
    np.testing.assert_allclose(made, factor / factor.diagonal(), rtol=1e-2, atol=1e-3)


def test_a_matrix_without_a_factor_is_refused() -> None:
    matrix = np.eye(70, dtype=np.float32)
    matrix[66, 66] = -1
    for each in (REFERENCE, *COMPILED):
        with pytest.raises(NotPositiveDefinite):
            each.feedback(matrix)


@settings(deadline=None, max_examples=30)
@given(columns=SIZES, inputs=st.integers(2, 90), limit=st.sampled_from([7, 127]), seed=SEEDS)
def test_round_columns(columns: int, inputs: int, limit: int, seed: int) -> None:
    """In two groups, with two scales a column, one of zero."""
    weights = random(columns, inputs, seed=seed, spread=0.3)
    weights[0] = 0
    scale_rows = (np.arange(inputs) % 2).astype(np.int32)
    scales = np.stack([np.abs(weights[:, scale_rows == i]).max(axis=1, initial=0) for i in (0, 1)]) / np.float32(limit)
    half = inputs // 2
    feedback = [
        (group, np.tril(random(size, size, seed=seed, spread=0.1) * np.float32(0.3), -1))
        for group, size in ((slice(0, half), half), (slice(half, inputs), inputs - half))
    ]
    made = assert_same_bits("round_columns", weights, scales.astype(np.float32), scale_rows, limit, feedback)
    assert np.abs(made.astype(int)).max() <= limit and not made[0].any()


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(1, 70), left=st.integers(1, 13), right=st.sampled_from([1, 2, 4, 8, 16, 32]), seed=SEEDS)
def test_rotate(rows: int, left: int, right: int, seed: int) -> None:
    x = random(rows, left * right, seed=seed)
    signs = np.sign(random(left * right, seed=seed + 1))
    matrix = orthogonalised(np.random.default_rng(seed).standard_normal((left, left))).astype(np.float32)
    made = assert_same_bits("rotate", x, signs, matrix)
    turned = assert_same_bits("rotate_columns", np.ascontiguousarray(x.T), signs, matrix)
    np.testing.assert_array_equal(turned, made.T)
    whole = np.kron(matrix.astype(np.float64), hadamard(right))
    tolerance = 1e-6 * np.abs(x).sum(axis=1, keepdims=True)
    assert (np.abs(made - (x * signs).astype(np.float64) @ whole) <= tolerance).all()


@settings(deadline=None, max_examples=20)
@given(
    rows=st.integers(1, 70),
    blocks=st.integers(1, 3),
    block=st.sampled_from([1, 2, 8, 32]),
    lanes=st.sampled_from([1, 16]),
)
def test_mix(rows: int, blocks: int, block: int, lanes: int) -> None:
    x = random(rows, blocks * block * lanes, seed=rows)
    made = assert_same_bits("mix", x, block, lanes, np.float32(block**-0.5))
    whole = np.einsum("ij,rbjl->rbil", hadamard(block), x.reshape(rows, blocks, block, lanes).astype(np.float64))
    tolerance = 1e-6 * np.abs(x).sum(axis=1, keepdims=True)
    assert (np.abs(made - whole.reshape(x.shape)) <= tolerance).all()


@settings(deadline=None, max_examples=20)
@given(rows=SIZES, width=st.integers(1, 200), seed=SEEDS)
def test_dot(rows: int, width: int, seed: int) -> None:
    x, vector = random(rows, width, seed=seed), random(width, seed=seed + 1)
    np.testing.assert_array_equal(assert_same_bits("largest", x), np.abs(x).max(axis=1))
    made = assert_same_bits("dot", x, vector)
    expected = x.astype(np.float64) @ vector.astype(np.float64)
    assert (np.abs(made - expected) <= 1e-6 * (np.abs(x) @ np.abs(vector)) + 1e-30).all()


@settings(deadline=None, max_examples=20)
@given(shape=st.tuples(st.integers(1, 90), st.integers(1, 200)), seed=SEEDS)
def test_exp(shape: tuple[int, int], seed: int) -> None:
    values = -np.abs(random(*shape, seed=seed))
    gate, up = random(*shape, seed=seed), random(*shape, seed=seed + 1)
    hidden, wide = assert_same_bits("swiglu", gate, up), gate.astype(np.float64)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(hidden, wide / (1 + np.exp(-wide)) * up, rtol=1e-4, atol=1e-30)
    made = assert_same_bits("exp", values)
    assert (np.abs(made - np.exp(values.astype(np.float64))) <= 2e-5 * np.exp(values) + 2e-38).all()


@settings(max_examples=200)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_twelve_bits_leave_every_product_exact(value: float) -> None:
    rounded = round_to_12_bits(np.array([value], np.float32))[0]
    mantissa = math.frexp(float(rounded))[0] * 2**12 if np.isfinite(rounded) else 0.0
    assert mantissa == int(mantissa)
    assert not np.isfinite(rounded) or abs(float(rounded) - value) <= max(abs(value) * 2**-12, 2**-138)


@settings(max_examples=300)
@given(st.floats(-1e6, 1e6))
def test_sines_and_cosines(angle: float) -> None:
    sine, cosine = sine_cosine(np.array([angle]))
    assert abs(sine[0] - math.sin(angle)) < 1e-15 and abs(cosine[0] - math.cos(angle)) < 1e-15


@pytest.mark.slow
def test_the_decoder_turns_by_the_same_angles(tmp_path: Path) -> None:
    """`native/csrc/trigonometry.h`, compiled for each class of CPUs, gives the bits of `sine_cosine`."""
    source = tmp_path / "angles.cpp"
    header = compiler.DECODER_SOURCE.with_name("trigonometry.h")
    source.write_text(
        f'#include "{header}"\n'
        "#pragma GCC visibility push(default)\n"
        'extern "C" void turn(const double* angles, long count, double* out) {\n'
        "  for (long i = 0; i < count; ++i) {\n"
        "    const auto turned = autoglm::sine_cosine(angles[i]);\n"
        "    out[2 * i] = turned.sine, out[2 * i + 1] = turned.cosine;\n  }\n}\n"
    )
    angles = np.random.default_rng(0).uniform(0, 1e6, 20_000)
    expected = np.stack(sine_cosine(angles), axis=1)
    for target in compiler.runnable_targets():
        library = ctypes.CDLL(str(compiler.build(source, target)))
        made = np.empty_like(expected)
        library.turn(ctypes.c_void_p(angles.ctypes.data), ctypes.c_long(len(angles)), ctypes.c_void_p(made.ctypes.data))
        np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize("theta", [10000.0, 1e6, 500000.0])
def test_powers_are_rounded_once(theta: float) -> None:
    made = power(theta, [(-i, 128) for i in range(0, 128, 2)])
    np.testing.assert_allclose(made, theta ** (-np.arange(0, 128, 2) / 128), rtol=3e-16)
    assert made[0] == 1.0 and power(2.0, [(-3, 1)])[0] == 0.125


@pytest.mark.parametrize("size", [1, 2, 9, 48])
def test_orthogonalised_is_lapacks_q(size: int) -> None:
    matrix = np.random.default_rng(size).standard_normal((size, size))
    expected = np.linalg.qr(matrix)[0] if size > 1 else np.eye(1)
    np.testing.assert_allclose(orthogonalised(matrix), expected, atol=1e-12)


@given(st.integers(1, 40_000))
def test_groups_are_all_inputs_in_order(num_inputs: int) -> None:
    groups = groups_of(num_inputs)
    assert groups[0].start == 0 and groups[-1].stop == num_inputs
    assert all(one.stop == other.start for one, other in pairwise(groups))
    assert all(0 < group.stop - group.start <= LARGEST_GROUP for group in groups)


TEXTS = [np.random.default_rng(length).integers(0, VOCAB_SIZE, length).astype(np.int32) for length in (40, 1, 25)]


def digests(folder: Path) -> dict[str, str]:
    """Of two exports of each of SPECS, one a runtime."""
    made = {}
    for index, spec in enumerate(SPECS.values()):
        (folder / f"{index}").mkdir(parents=True)
        write_program(spec, random_weights(spec), folder / f"{index}", TEXTS)
    (folder / "onnx").mkdir()
    onnx = {"precision": "int8", "num_slots": 2, "max_length": 64, "prefill_chunk": 16}
    write_onnx(BASE, random_weights(BASE), folder / "onnx", texts=TEXTS, **onnx)
    for path in sorted(folder.rglob("*.*")):
        made[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return made


FORCED: list[Mapping[str, str]] = [
    *({TARGET_VARIABLE: target.name} for target in compiler.runnable_targets()),
    {"OPENBLAS_CORETYPE": "Haswell", "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3"},
]


PRINT_DIGESTS = """
import json, os, pathlib, sys
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
sys.path.insert(0, sys.argv[1])
from tests.export.test_reproducible import digests
print(json.dumps(digests(pathlib.Path(sys.argv[2]))))
"""


@pytest.mark.parametrize("environment", FORCED, ids=lambda environment: " ".join(environment.values()))
@pytest.mark.slow
def test_an_artifact_is_the_same_wherever_it_is_exported(environment: Mapping[str, str], tmp_path: Path) -> None:
    """On one core, under another class of CPUs, with another BLAS and other loops in numpy: the bytes of this
    process."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        PRINT_DIGESTS,
        str(Path(__file__).parents[2]),
        str(tmp_path / "there"),
    ]
    there = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True)
    expected = digests(tmp_path / "here")
    assert len(expected) == 2 * len(SPECS) + 2
    assert json.loads(there.stdout.splitlines()[-1]) == expected


@pytest.mark.slow
def test_without_a_compiler_the_bytes_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = digests(tmp_path / "compiled")
    for module in ("quantize.calibration", "quantize.rounding", "quantize.rotation", "native.program"):
        monkeypatch.setattr(f"autoglm_export.{module}.kernels", lambda: REFERENCE)
    assert digests(tmp_path / "numpy") == expected


def test_the_compiled_kernels_are_used_where_there_is_a_compiler() -> None:
    assert isinstance(kernels(), CompiledKernels)


def test_bfloat16_weights_are_exact_operands() -> None:
    values = random(1000).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(round_to_12_bits(values), values)
