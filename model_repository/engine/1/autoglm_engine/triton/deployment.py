"""What the order of an answer's pieces rests on in the repository that Triton loads: refused at load where it is not
so, since nothing would show it afterwards but wrong text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from autoglm_engine.errors import InvalidRequest

VERSION = "1"


def check_version(model: str, version: str) -> None:
    """The models find each other's files in version 1; another one would be reported ready, and version 1 go on
    serving."""
    if version != VERSION:
        raise InvalidRequest(
            f"{model}/{version} cannot be served: the only version of each model is {VERSION}, and a new "
            f"artifact takes the place of the one before (docs/serving/running.md, Reloads); remove {model}/{version}"
        )


def check_single_instance(model: str, model_config: str) -> None:
    """`model_config`: Triton's JSON of config.pbtxt."""
    count = sum(map(_num_instances, json.loads(model_config).get("instance_group", [])))
    if count > 1:
        raise InvalidRequest(
            f"{model} has {count} instances in instance_group, it must have 1: events pass through it in one order"
        )


def check_preserves_order(model: str, model_config: str) -> None:
    if not json.loads(model_config).get("dynamic_batching", {}).get("preserve_ordering"):
        raise InvalidRequest(
            f"{model} must have dynamic_batching {{ preserve_ordering: true }} in its config.pbtxt: without it Triton "
            "25.06 and later may send the pieces of an answer out of order"
        )


def _num_instances(group: Mapping[str, Any]) -> int:
    """On each of its GPUs, where it names some."""
    return int(group.get("count", 1)) * max(1, len(group.get("gpus", [])))
