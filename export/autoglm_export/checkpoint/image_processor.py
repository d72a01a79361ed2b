"""How a checkpoint wants its images: `preprocessor_config.json`, or the `image_processor` of `processor_config.json`,
which goes first as in transformers 5. Every key is read, known to be harmless, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoglm_export.errors import UnsupportedModel
from autoglm_export.model.vision_spec import NUM_CHANNELS, VisionSpec

from .hf_config import Keys
from .vision_families import CLIP_MEAN, CLIP_STD, Channels, ProcessorFamily

_HARMLESS = frozenset(
    {
        *("_processor_class", "_valid_processor_keys", "processor_class", "feature_extractor_type"),
        *("data_format", "device", "disable_grouping", "image_seq_length", "input_data_format", "return_tensors"),
    }
)
_BICUBIC = 3
_SETTLED: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"), (True,)),
    **dict.fromkeys(("do_center_crop", "do_pad", "default_to_square"), (False,)),
    "resample": (_BICUBIC,),
    "rescale_factor": (1 / 255,),
}


@dataclass(frozen=True, slots=True)
class ImageProcessor:
    """`min_pixels`, `max_pixels`: of all `frames` that a still image counts as. `grows_small`: as `ProcessorFamily`."""

    min_pixels: int
    max_pixels: int
    mean: Channels
    std: Channels
    frames: int
    grows_small: bool


def image_processor(raw: Mapping[str, Any], spec: VisionSpec, family: ProcessorFamily) -> ImageProcessor:
    """Raises UnsupportedModel for what the processor would do and this one does not."""
    keys = Keys(raw)
    for name, allowed in {"image_processor_type": family.types, **_SETTLED}.items():
        if (value := keys.get(name, allowed[0])) not in allowed:
            raise UnsupportedModel(f"the image processor's {name} is {value!r:.40}; only {allowed[0]!r} is supported")
    _check_agrees(keys, spec)
    size = Keys(_size(keys))
    found = ImageProcessor(
        min_pixels=size.integer("shortest_edge", family.min_pixels),
        max_pixels=size.integer("longest_edge", family.max_pixels),
        mean=_channels(keys, "image_mean", CLIP_MEAN, 0.0),
        std=_channels(keys, "image_std", CLIP_STD, 1e-3),
        frames=family.frames,
        grows_small=family.grows_small,
    )
    size.refuse_rest(frozenset())
    keys.refuse_rest(_HARMLESS)
    if found.min_pixels > found.max_pixels:
        raise UnsupportedModel(f"the image processor's size is {found.min_pixels} ... {found.max_pixels} pixels")
    return found


def _check_agrees(keys: Keys, spec: VisionSpec) -> None:
    for name, default, used in (
        ("patch_size", 14, spec.patch_size),
        ("temporal_patch_size", 2, spec.temporal_patch_size),
        ("merge_size", 2, spec.merge_size),
    ):
        if (value := keys.integer(name, default)) != used:
            raise UnsupportedModel(f"the image processor's {name} is {value}; the vision_config says {used}")


def _size(keys: Keys) -> dict[str, Any]:
    """`size`, or the two keys that it once was."""
    old = {"shortest_edge": keys.get("min_pixels"), "longest_edge": keys.get("max_pixels")}
    size = {**keys.object("size")}
    for name, value in old.items():
        if value is not None and size.setdefault(name, value) != value:
            raise UnsupportedModel(f"the image processor gives its {name} twice: {size[name]!r} and {value!r}")
    return size


def _channels(keys: Keys, name: str, default: Channels, least: float) -> Channels:
    values = keys.list(name, default)
    if len(values) != NUM_CHANNELS or not all(_is_number(value) and least <= value <= 1 for value in values):
        raise UnsupportedModel(
            f"the image processor's {name} is {values!r:.60}; it must be three numbers of {least:g} ... 1"
        )
    red, green, blue = map(float, values)
    return red, green, blue


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
