"""What the tokenizer and the detokenizer read of an artifact is of the one that the engine named, or they say that it
is not."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from autoglm_engine.errors import ArtifactError, Unavailable
from autoglm_engine.manifest import Manifest
from autoglm_engine.triton.followed_artifact import FollowedArtifact

from tests.support.engine.small_service import write_artifact


def put(folder: Path, family: str) -> str:
    manifest = dataclasses.replace(write_artifact(folder), family=family)
    manifest.save(folder)
    return manifest.short_digest


class Followed(FollowedArtifact[str]):
    """Reads the family; notes what was read and let go."""

    def __init__(self, folder: Path, most: int = 1) -> None:
        self.loaded: list[str] = []
        self.ended: list[str] = []
        super().__init__(folder, self._note, most=most, let_go=self.ended.append)

    def _note(self, folder: Path, manifest: Manifest) -> str:
        self.loaded.append(manifest.family)
        return manifest.family


def test_it_is_read_once_and_again_when_it_was_replaced(tmp_path: Path) -> None:
    first = put(tmp_path, "llama")
    followed = Followed(tmp_path)
    followed.read()
    assert [followed.of(first), followed.of(first)] == ["llama", "llama"]
    second = put(tmp_path, "qwen2")
    assert followed.of(first) == "llama", "nothing is read before the engine asks for it"
    assert followed.of(second) == "qwen2"
    assert (followed.loaded, followed.ended) == (["llama", "qwen2"], ["llama"])


def test_what_streams_still_need_is_kept(tmp_path: Path) -> None:
    followed = Followed(tmp_path, most=3)
    digests = []
    for family in ("llama", "qwen2", "qwen3", "glm"):
        digests.append(put(tmp_path, family))
        assert followed.of(digests[-1]) == family
        assert followed.of(digests[0]) == "llama"
    assert followed.ended == ["qwen2"], "the first was used all the time"


def test_one_that_was_replaced_meanwhile_is_one_sentence(tmp_path: Path) -> None:
    first, second = put(tmp_path, "llama"), put(tmp_path, "qwen2")
    followed = Followed(tmp_path)
    sentence = (
        f"the engine serves the artifact {first}, which cannot be read any more ({second} lies in {tmp_path}): "
        "a reload is due or under way; send the request again"
    )
    for _ in range(2):
        with pytest.raises(Unavailable, match=f"^{re.escape(sentence)}$"):
            followed.of(first)
    assert followed.loaded == []
    assert followed.of(second) == "qwen2"


def test_one_that_is_replaced_while_it_is_read_is_not_taken(tmp_path: Path) -> None:
    first = put(tmp_path, "llama")

    def load(folder: Path, manifest: Manifest) -> str:
        put(folder, "qwen2")
        return "a mixture"

    with pytest.raises(Unavailable, match="was replaced while it was read"):
        FollowedArtifact(tmp_path, load, most=1).of(first)


def test_one_that_is_gone_or_damaged(tmp_path: Path) -> None:
    first = put(tmp_path, "llama")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(Unavailable, match="which cannot be read any more"):
        Followed(tmp_path).of(first)
    with pytest.raises(ArtifactError, match="is missing; run `autoglm export`"):
        Followed(tmp_path / "none").read()


def test_one_that_is_loaded_beside_a_reload_waits_for_the_engine(tmp_path: Path) -> None:
    first, second = put(tmp_path, "llama"), put(tmp_path, "qwen2")
    followed = Followed(tmp_path)
    served = iter([first, first, second])
    followed.read(lambda: next(served), patience=60)
    assert next(served, None) is None and followed.loaded == ["qwen2"], "it is read while the engine is waited for"
    assert followed.of(second) == "qwen2" and followed.loaded == ["qwen2"]


def test_what_is_replaced_meanwhile_is_read_again(tmp_path: Path) -> None:
    first, second = put(tmp_path, "llama"), put(tmp_path, "qwen2")
    followed = Followed(tmp_path)
    last = ""

    def served() -> str:
        nonlocal last
        if not last:
            last = put(tmp_path, "qwen3")
            return first
        return last

    followed.read(served, patience=60)
    assert (followed.loaded, followed.ended) == (["qwen2", "qwen3"], ["qwen2"])
    assert last != second and followed.of(last) == "qwen3"


def test_an_engine_that_never_follows_is_one_sentence(tmp_path: Path) -> None:
    """The process before goes on, with the engine's artifact."""
    first, second = put(tmp_path, "llama"), put(tmp_path, "qwen2")
    followed = Followed(tmp_path)
    sentence = (
        f"the engine serves the artifact {first}, and {second} lies in {tmp_path}: load the engine again, which "
        "is enough"
    )
    with pytest.raises(ArtifactError, match=f"^{re.escape(sentence)}$"):
        followed.read(lambda: first, patience=0)
    assert followed.ended == ["qwen2"]


@pytest.mark.parametrize("serves", [None, "this one"])
def test_without_another_engine_nothing_is_waited_for(tmp_path: Path, serves: str | None) -> None:
    artifact = put(tmp_path, "llama")
    followed = Followed(tmp_path)
    followed.read(lambda: serves and artifact, patience=0)
    assert followed.of(artifact) == "llama" and followed.loaded == ["llama"]
