"""The libraries that read images in an artifact: written at export, checked when they are opened, and in no digest."""

from __future__ import annotations

import dataclasses
import platform
import shutil
from pathlib import Path

import numpy as np
import pytest
from autoglm_engine.errors import ArtifactError
from autoglm_engine.manifest import IMAGE_LIBRARIES, FileRecord, Manifest
from autoglm_engine.runners.pixel_library import open_pixel_library
from autoglm_engine.runners.towers import open_tower
from autoglm_engine.triton.images.vision_model import Encoder, encode_image
from autoglm_engine.vision.processor import preprocess
from autoglm_export import compiler
from autoglm_export.export import export

from tests.support.export.tiny_glm4v import image_file
from tests.support.vision.settings import vision_settings

pytestmark = pytest.mark.parity
LIMITS = {"max_slots": 2, "max_length": 128, "prefill_chunk": 32}
FILE = image_file(56, 84)


@pytest.fixture(scope="module")
def exported(tiny_glm4v: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "artifact"
    export(tiny_glm4v, folder, runtime="onnx", precision="fp32", **LIMITS)
    return folder


@pytest.fixture
def artifact(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "artifact"))


@pytest.fixture
def blind_to_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def test_an_artifact_has_one_for_every_class_of_cpus(exported: Path) -> None:
    manifest = Manifest.load(exported)
    libraries = manifest.runtime_details[IMAGE_LIBRARIES]
    assert list(libraries) == [target.name for target in compiler.TARGETS]
    manifest.verify_files(exported, [entry["file"] for entry in libraries.values()], digests=True)
    assert open_pixel_library(exported, manifest) is not None


def test_features_are_the_same_with_and_without_it(exported: Path) -> None:
    manifest = Manifest.load(exported)
    tower, library = open_tower(exported, manifest), open_pixel_library(exported, manifest)
    for _ in range(2):
        one, other = (encode_image(FILE, (2, 3), Encoder(tower, each)) for each in (library, None))
        np.testing.assert_array_equal(one.features, other.features)


def test_an_exporter_without_a_compiler_leaves_images_to_pillow(
    tiny_glm4v: Path, exported: Path, tmp_path: Path, blind_to_compilers: None
) -> None:
    manifest = export(tiny_glm4v, tmp_path / "artifact", runtime="onnx", precision="fp32", **LIMITS)
    assert IMAGE_LIBRARIES not in manifest.runtime_details and not (tmp_path / "artifact" / "images").exists()
    note = manifest.runtime_details["image_note"]
    assert note.startswith("Pillow reads the images, which takes longer: the native runtime needs a C++ compiler")
    assert open_pixel_library(tmp_path / "artifact", manifest) is None
    assert manifest.digest == Manifest.load(exported).digest, "it answers the same"


def test_another_machine_has_images_read_by_pillow(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert open_pixel_library(exported, Manifest.load(exported)) is None


def test_a_library_that_was_changed_is_not_loaded(artifact: Path) -> None:
    for entry in Manifest.load(artifact).runtime_details[IMAGE_LIBRARIES].values():
        file = artifact / entry["file"]
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(ArtifactError, match="is not the file that was exported"):
        open_pixel_library(artifact, Manifest.load(artifact))


def test_what_is_no_library_is_refused_by_its_name(artifact: Path) -> None:
    manifest = Manifest.load(artifact)
    (artifact / "images" / "portable.so").write_bytes(b"not a library")
    files = {**manifest.files, "images/portable.so": FileRecord.of(artifact / "images" / "portable.so")}
    details = {IMAGE_LIBRARIES: {"portable": {"file": "images/portable.so", "cpu_features": []}}}
    changed = dataclasses.replace(manifest, files=files, runtime_details={**manifest.runtime_details, **details})
    with pytest.raises(ArtifactError, match=r"portable\.so cannot be loaded"):
        open_pixel_library(artifact, changed)


@pytest.mark.parametrize(
    ("libraries", "said"),
    [
        ([], r"image_libraries \[\]; it must be an object"),
        ({"any": "images/any.so"}, "describes a library by"),
        ({"any": {"file": "images/any.so"}}, "image_libraries.cpu_features"),
        ({"any": {"file": "elsewhere.so", "cpu_features": []}}, 'names the file "elsewhere.so", which is none'),
    ],
)
def test_a_manifest_that_describes_it_wrongly_is_refused(artifact: Path, libraries: object, said: str) -> None:
    manifest = Manifest.load(artifact)
    details = {**manifest.runtime_details, IMAGE_LIBRARIES: libraries}
    with pytest.raises(ArtifactError, match=said):
        open_pixel_library(artifact, dataclasses.replace(manifest, runtime_details=details))


def test_images_are_read_by_it_where_it_can(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import ImageOps

    library = open_pixel_library(exported, Manifest.load(exported))
    monkeypatch.setattr(ImageOps, "exif_transpose", None)  # of whatever Pillow reads
    assert preprocess(FILE, vision_settings(), library=library).grid == (4, 6)
