"""`manifest.json`: what an exported artifact is, so that a server can refuse one that it cannot run.

An artifact is a folder: the manifest, the tokenizer (`tokenizer.json`, `chat_template.jinja` where the model has one,
`chat_template_tool_use.jinja` where it has another one for tools) and the files of its runtime. `files` lists every
file but the manifest, with size and SHA-256.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import ArtifactError
from .manifest_checks import check_file_record, check_values, check_vision, read_json

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
MAX_ASPECT_RATIO = 200  # of an image: its longer side to its shorter one
IMAGE_LIBRARIES = "image_libraries"  # of the runtime's details: compiled, they read images as Pillow does
# What a manifest says and no answer depends on. Whatever is not named here counts, so that nothing is forgotten.
_NO_PART_OF_ANSWERS = ("model_name", "num_slots", "parity", "source", "exporter_version", "runtime_details", "files")
_READ_BYTES = 1 << 18
_MAX_READERS = 4  # threads that read files and sum them up
# What was measured or noted at export; which compiler built what; on which GPU it was checked.
_NO_PART_OF_DETAILS = (
    *("auto", "checkpoint_note", "libraries", IMAGE_LIBRARIES, "image_note", "device_check", "device_check_note"),
)


@dataclass(frozen=True, slots=True)
class FileRecord:
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        return cls(bytes=path.stat().st_size, sha256=_sha256(path))


def _sha256(path: Path) -> str:
    """`hashlib.file_digest`, which Python 3.10 lacks; as fast, in buffers of the same size."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class CacheShape:
    """The key/value cache of one slot: `num_layers` pairs of `[num_kv_heads, max_length, head_size]`."""

    num_layers: int
    num_kv_heads: int
    head_size: int
    dtype: str


@dataclass(frozen=True, slots=True)
class VisionSettings:
    """How an image becomes tokens and rows of the decoder's width: preprocessing, and the tower that encodes it.

    `model` is a file of the artifact. An image is resized to multiples of `patch_size * merge_size`, so that `frames`
    times its pixels lie within `min_pixels` ... `max_pixels`: some models count a still image as several frames. Every
    `merge_size` x `merge_size` patches are one token.
    """

    runtime: str  # which tower loads it: "onnx"
    model: str
    precision: str
    image_token_id: int
    begin_image_token_id: int
    end_image_token_id: int
    patch_size: int  # pixels along one side
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int
    frames: int
    grows_small: bool  # an image that is narrower than a token is first made as wide as one
    image_mean: tuple[float, float, float]  # of values in 0 ... 1, red, green, blue
    image_std: tuple[float, float, float]
    hidden_size: int  # of a row: the decoder's, and as much again for each of its layers that takes features
    head_size: int  # of the tower's attention
    rope_theta: float  # of the tower's positions
    position_table_size: int  # learned positions along one side
    interpolation: str  # of them: "bicubic" or "bilinear"
    mrope_sections: tuple[int, int, int]  # pairs of the decoder's rope that turn by time, row and column
    max_images: int  # in one request

    @property
    def max_tokens(self) -> int:
        """Of an image that is no narrow strip: see `largest_tokens`."""
        return self.max_pixels // (self.frames * (self.patch_size * self.merge_size) ** 2)

    @property
    def largest_tokens(self) -> int:
        """What no image has more of, whatever limits of pixels within these its request asks for. More than
        `max_pixels` says: an image that is made larger, up to that limit where `min_pixels` is it, too, is rounded up
        along both sides."""
        most = self.max_pixels / (self.frames * (self.patch_size * self.merge_size) ** 2)
        return math.floor((math.sqrt(most * MAX_ASPECT_RATIO) + 1) * (math.sqrt(most / MAX_ASPECT_RATIO) + 1))

    @property
    def feature_bytes(self) -> int:
        """Of the largest image, in float32."""
        return self.largest_tokens * self.hidden_size * 4


_LISTS = ("image_mean", "image_std", "mrope_sections")


@dataclass(frozen=True, slots=True)
class Manifest:
    model_name: str
    family: str
    runtime: str  # which runner loads it: "onnx", "native", "tensorrt", ...
    runtime_version: str
    precision: str  # "fp32", "int8", ...
    num_slots: int
    max_length: int
    prefill_chunk: int
    vocab_size: int
    cache: CacheShape
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    generation_defaults: dict[str, Any]  # names and ranges of `options.py`
    spec: dict[str, Any]  # the ModelSpec it was exported from
    runtime_details: dict[str, Any] = field(default_factory=dict)  # tensor names, CPU features, ...: the runner's own
    parity: dict[str, Any] | None = None
    source: str = ""  # the checkpoint's name, never a path of the exporting machine
    exporter_version: str = ""
    files: dict[str, FileRecord] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    vision: VisionSettings | None = None  # of a model that sees; no key of the file for any other
    stop_strings: tuple[str, ...] = ()  # texts that end every answer
    banned_tokens: tuple[tuple[int, ...], ...] = ()  # sequences of token ids that no answer holds
    special_tokens: dict[str, str] | None = None  # name -> text, for the chat template; None: only the ids above say

    @property
    def digest(self) -> str:
        """Identifies what the artifact answers: equal digests give equal answers, whatever the machine.

        So it counts what the manifest alone says, too: where an answer ends, and how long it may be. A compiled decoder
        counts by its sources: which compiler built it, and for which CPU, changes no answer. Nor does a library that
        reads images as Pillow does.
        """
        contents = {name: record.sha256 for name, record in self.files.items()}
        details = dict(self.runtime_details)
        if self.runtime == "native" and details.get("library_sources"):
            for entry in details["libraries"].values():
                contents.pop(entry["file"], None)
        for entry in details.get(IMAGE_LIBRARIES, {}).values():
            contents.pop(entry["file"], None)
        said = {name: value for name, value in self._as_json().items() if name not in _NO_PART_OF_ANSWERS}
        details = {name: value for name, value in details.items() if name not in _NO_PART_OF_DETAILS}
        whole = json.dumps([said, details, contents], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()

    @property
    def short_digest(self) -> str:
        """16 hexadecimal digits: enough to tell the artifacts apart that one server has had."""
        return self.digest[:16]

    def check_unchanged(self, folder: Path) -> None:
        """Raises ArtifactError where another artifact was put into `folder` since this manifest was read there: what
        was read after it may then be of either."""
        if Manifest.load(folder).digest != self.digest:
            raise ArtifactError(f"the artifact at {folder} was replaced while it was read; load it again")

    def save(self, folder: Path) -> None:
        text = json.dumps(self._as_json(), indent=2, ensure_ascii=False)
        (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")

    def _as_json(self) -> dict[str, Any]:
        content = dataclasses.asdict(self)
        rare = ("vision", "special_tokens", "stop_strings", "banned_tokens")  # no keys where they say nothing
        return {name: value for name, value in content.items() if name not in rare or value not in (None, ())}

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        path = folder / MANIFEST_NAME
        try:
            raw = read_json(path)
        except FileNotFoundError:
            raise ArtifactError(f"no artifact at {folder}: {MANIFEST_NAME} is missing; run `autoglm export`") from None
        return _from_json(raw, path)

    def verify_files(self, folder: Path, names: Collection[str] | None = None, *, digests: bool = False) -> None:
        """Check that every listed file, or those of `names`, is there in its full size; with `digests`, that its
        content is the exported one."""
        if names is not None and (unlisted := sorted(set(names) - self.files.keys())):
            raise ArtifactError(f"the manifest of {folder} does not list {unlisted[0]}; export it again")
        verify_files(
            folder, self.files if names is None else {name: self.files[name] for name in names}, digests=digests
        )


def verify_files(folder: Path, files: Mapping[str, FileRecord], *, digests: bool) -> None:
    """Sizes first: they cost nothing. Then all contents side by side, the largest file first. Raises ArtifactError."""
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"the artifact at {folder} lacks {name}; export it again")
        if path.stat().st_size != expected.bytes:
            raise ArtifactError(f"{path} has {path.stat().st_size} bytes, the manifest says {expected.bytes}")
    if digests and files:
        in_order = sorted(files, key=lambda name: -files[name].bytes)
        with ThreadPoolExecutor(_MAX_READERS, thread_name_prefix="verify") as pool:
            for name, actual in zip(in_order, pool.map(lambda name: _read(folder / name), in_order), strict=True):
                if actual.sha256 != files[name].sha256:
                    raise ArtifactError(
                        f"{folder / name} is not the file that was exported: its SHA-256 differs from the manifest's"
                    )


def _read(path: Path) -> FileRecord:
    try:
        return FileRecord.of(path)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from None


def records_of(raw: Mapping[str, Any], path: Path) -> dict[str, FileRecord]:
    """`files` of a manifest at `path`. Raises ArtifactError for what is no record, or a path out of the folder."""
    for name, record in raw.items():
        check_file_record(name, record, path)
    return {name: FileRecord(**record) for name, record in raw.items()}


def _from_json(raw: dict[str, Any], path: Path) -> Manifest:
    if (version := raw.get("schema_version")) != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema version {version!r:.40}, this engine reads {SCHEMA_VERSION}; export it again"
        )
    fields = dataclasses.fields(Manifest)
    if unknown := sorted(raw.keys() - {f.name for f in fields}):
        raise ArtifactError(f"{path} has unknown keys: {', '.join(unknown)}")
    required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in (*required, "files") if name not in raw]:
        raise ArtifactError(f"{path} is incomplete: it lacks {', '.join(missing)}")
    check_values(raw, path)
    vision = raw.get("vision")
    return Manifest(
        **{
            **raw,
            "cache": CacheShape(**raw["cache"]),
            "eos_token_ids": tuple(raw["eos_token_ids"]),
            "stop_strings": tuple(raw.get("stop_strings", ())),
            "banned_tokens": tuple(map(tuple, raw.get("banned_tokens", ()))),
            "files": records_of(raw["files"], path),
            "vision": None if vision is None else _vision_of(vision, raw, path),
        }
    )


def _vision_of(vision: Any, raw: Mapping[str, Any], path: Path) -> VisionSettings:
    names = [f.name for f in dataclasses.fields(VisionSettings)]
    check_vision(vision, names, raw, path)
    return VisionSettings(**{**vision, **{name: tuple(vision[name]) for name in _LISTS}})
