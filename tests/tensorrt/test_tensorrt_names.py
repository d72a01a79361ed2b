"""Every name of TensorRT's Python API that our code uses is in the bindings of `tensorrt` 11.0 and 11.4.

These cannot be installed where there is no GPU's library, so their names were recorded: the classes that we use, as
`dir` tells them of the wheels `tensorrt_cu13_bindings` (their libraries replaced by empty ones). TensorRT-RTX, which
the tests do install, is asked itself. The rest is syntax: `trt.A.B` is looked up as it stands, and what is read of a
variable that is always one of TensorRT's objects is looked up in that object's class.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tensorrt import fake_tensorrt

pytestmark = pytest.mark.tensorrt

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "model_repository" / "engine" / "1" / "autoglm_engine"
FILES = [
    *sorted((ROOT / "export" / "autoglm_export" / "tensorrt").glob("*.py")),
    *sorted((ENGINE / "runners" / "tensorrt").glob("*.py")),
]
RECORDED: dict[str, dict[str, list[str]]] = json.loads(
    (Path(__file__).parent.parent / "data" / "tensorrt_names.json").read_text()
)
CLASSES = {
    "definition": "INetworkDefinition",
    "_builder": "Builder",
    "config": "IBuilderConfig",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
    "configuration": "IRuntimeConfig",
}
OPERATIONS = {"binary": "ElementWiseOperation", "unary": "UnaryOperation", "reduce": "ReduceOperation"}
FAKES = {
    fake_tensorrt.FakeRuntime: "Runtime",
    fake_tensorrt.FakeEngine: "ICudaEngine",
    fake_tensorrt.FakeContext: "IExecutionContext",
}
# Used where the module is TensorRT-RTX alone: kernels are compiled on the machine that runs them.
RTX_ALONE = {
    "BuilderFlag.REQUIRE_USER_ALLOCATION",
    "ComputeCapability",
    "CudaGraphStrategy",
    "CudaGraphStrategy.DISABLED",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "ICudaEngine.create_runtime_config",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.cuda_graph_strategy",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "IRuntimeConfig.set_execution_context_allocation_strategy",
    "IRuntimeConfig.set_runtime_cache",
}


def names_in(path: Path) -> Iterator[str]:
    """`Class.member`, or `Class`, as far as the file names them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            yield from _attribute(ast.unparse(node))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            kind, first = OPERATIONS.get(node.func.attr), node.args[0]
            if kind and isinstance(first, ast.Constant):
                yield f"{kind}.{first.value}"


def _attribute(text: str) -> Iterator[str]:
    parts = text.split(".")
    if not all(part.isidentifier() for part in parts):
        return
    if "trt" in parts[:-1]:
        name = ".".join(parts[parts.index("trt") + 1 :][:2])
        if "__" not in name:
            yield name
    elif parts[-2] in CLASSES:
        yield f"{CLASSES[parts[-2]]}.{parts[-1]}"


USED = {name: path.name for path in FILES for name in names_in(path)}


def missing(names: dict[str, list[str]]) -> set[str]:
    def is_there(name: str) -> bool:
        owner, _, member = name.partition(".")
        return owner in names and (not member or member in names[owner])

    return {name for name in USED if not is_there(name)}


def test_the_names_were_found() -> None:
    """The test would pass as well if it looked at nothing."""
    some = {"INetworkDefinition.add_kv_cache_update", "IExecutionContext.execute_async_v3", "KVCacheMode.LINEAR"}
    assert some | {"ElementWiseOperation.DIV", "Runtime.deserialize_cuda_engine", "IStreamReaderV2"} <= USED.keys()


@pytest.mark.parametrize("version", RECORDED)
def test_tensorrt_has_every_name_that_is_used(version: str) -> None:
    assert missing(RECORDED[version]) - RTX_ALONE == set()


def test_tensorrt_rtx_has_every_name_that_is_used() -> None:
    import tensorrt_rtx

    classes = {name: value for name, value in vars(tensorrt_rtx).items() if not name.startswith("_")}
    assert missing({name: dir(value) for name, value in classes.items()}) == set()
    assert missing(RECORDED["11.4.0.106"]) <= RTX_ALONE <= USED.keys()


@pytest.mark.parametrize("fake", FAKES, ids=lambda fake: fake.__name__)
def test_the_fake_has_nothing_that_the_real_one_lacks(fake: type) -> None:
    """What runs on a device alone is tested over this fake: a name that is only there would fail on a card."""
    methods = {name for name, value in vars(fake).items() if callable(value) and not name.startswith("_")}
    assert methods
    assert methods <= set(RECORDED["11.4.0.106"][FAKES[fake]])
