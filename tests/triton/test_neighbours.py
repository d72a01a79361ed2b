"""Which models work together, where their artifacts are, and that those of one family are no use to another."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import numpy as np
import pytest
from autoglm_client.model_names import PARTS, ModelNames, name_trouble
from autoglm_engine.errors import InvalidRequest, Unavailable
from autoglm_engine.triton.board.acks import AckBoard
from autoglm_engine.triton.board.engine_watch import EngineWatch
from autoglm_engine.triton.board.finder import EngineBoard, EventBoards
from autoglm_engine.triton.board.seal import Kind
from autoglm_engine.triton.board.server_identity import ServerIdentity
from autoglm_engine.triton.neighbours import Neighbours

CONTENT = np.frombuffer(b"{}", dtype=np.uint8)


def config(**parameters: str) -> str:
    return json.dumps({"parameters": {name: {"string_value": value} for name, value in parameters.items()}})


def identity(engine: str) -> ServerIdentity:
    return ServerIdentity.of(os.getpid(), engine)


# ---- names and artifacts


def test_without_parameters_the_names_are_those_of_the_tree() -> None:
    names, default = ModelNames.of("autoglm"), Neighbours.of("{}")
    assert default == Neighbours(names.ensemble, names.engine, names.detokenizer, names.embedder, artifact="")


def test_the_artifact_is_beside_the_engine_or_where_the_environment_says(tmp_path: Path) -> None:
    neighbours = Neighbours.of(config(max_queue="5"))
    for folder, holder in ((tmp_path, "tokenizer"), (tmp_path, "engine")):  # fetched alone, and beside its engine
        (folder / holder).mkdir()
        assert neighbours.artifact_folder(folder / "tokenizer", {}) == folder / holder / "1" / "artifact"
        assert neighbours.artifact_folder(folder / "tokenizer", {"AUTOGLM_ARTIFACT": "/a"}) == Path("/a")


@pytest.mark.parametrize("environ", [{}, {"AUTOGLM_ARTIFACT": "/a"}])
def test_the_environment_does_not_replace_a_familys_own_artifact(tmp_path: Path, environ: dict[str, str]) -> None:
    """Or every family of the server would answer alike."""
    (tmp_path / "x-engine").mkdir()
    beside = Neighbours.of(config(engine_model="x-engine", artifact="1/artifact"))
    assert beside.artifact_folder(tmp_path / "x-tokenizer", environ) == tmp_path / "x-engine" / "1" / "artifact"
    elsewhere = Neighbours.of(config(engine_model="x-engine", artifact="/models/x"))
    assert elsewhere.artifact_folder(tmp_path / "x-engine", environ) == Path("/models/x")


def test_the_embedder_lies_in_its_own_folder_or_where_the_environment_says() -> None:
    assert Neighbours().embedder_folder("/m/engine", {}) == Path("/m/embedder/1/artifact")
    assert Neighbours().embedder_folder("/m/engine", {"AUTOGLM_EMBEDDER": "/e"}) == Path("/e")
    named = Neighbours.of(config(embedder_model="x-embedder"))
    assert named.embedder_folder("/m/x-engine", {}) == Path("/m/x-embedder/1/artifact")
    assert Neighbours.of(config(embedder_model="")).embedder_folder("/m/x-engine", {"AUTOGLM_EMBEDDER": "/e"}) is None


@pytest.mark.parametrize("name", ["a", "glm-4.5", "Qwen2_0.5B", "autoglm", "x" * 48, "engine-2"])
def test_a_name_that_may_be_given(name: str) -> None:
    assert name_trouble(name) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "allowed are 1 to 48 letters, digits"),
        ("x" * 49, "allowed are 1 to 48"),
        ("-a", "the first is a letter or digit"),
        (".hidden", "the first is a letter or digit"),
        ("a/b", "allowed are"),
        ("a b", "allowed are"),
        ("modèle", "allowed are"),
        ("a\n", "allowed are"),
        *((part, "steps are called so") for part in PARTS),
        *((f"a-{part}", "steps are called so") for part in PARTS),
    ],
)
def test_a_name_that_may_not(name: str, words: str) -> None:
    assert words in (name_trouble(name) or "")


def test_no_name_of_one_family_is_one_of_anothers() -> None:
    """Whatever names are allowed."""
    candidates = ["autoglm", "a", *PARTS, *(f"a-{part}" for part in PARTS), "a-b", "b"]
    allowed = [ModelNames.of(name) for name in candidates if name_trouble(name) is None]
    taken = [name for names in allowed for name in (names.ensemble, *names.steps, names.embedder)]
    assert len(allowed) == 4 and len(taken) == len(set(taken))


# ---- what passes between the models


def test_a_tokenizer_seals_for_its_own_engine(tmp_path: Path) -> None:
    with AckBoard(4, tmp_path, identity("x-engine")) as one:
        with pytest.raises(Unavailable, match="the engine is not loaded"):
            EngineBoard(identity("y-engine"), tmp_path).current()
        with AckBoard(4, tmp_path, identity("y-engine")) as other:
            for own, strange, name in ((one, other, "x-engine"), (other, one, "y-engine")):
                sealed = EngineBoard(identity(name), tmp_path).current().seal.close(Kind.REQUEST, CONTENT)
                assert own.seal.open(Kind.REQUEST, sealed).tobytes() == b"{}"
                with pytest.raises(InvalidRequest, match="request has no valid seal"):
                    strange.seal.open(Kind.REQUEST, sealed)


def test_a_detokenizer_opens_no_event_of_another_engine(tmp_path: Path) -> None:
    with AckBoard(4, tmp_path, identity("x-engine")) as one, AckBoard(4, tmp_path, identity("y-engine")) as other:
        for own, strange, name in ((one, other, "x-engine"), (other, one, "y-engine")):
            boards = EventBoards(identity(name), tmp_path)
            assert boards.open(own.seal.close(Kind.EVENT, CONTENT))[0].tobytes() == b"{}"
            with pytest.raises(InvalidRequest, match="event has no valid seal"):
                boards.open(strange.seal.close(Kind.EVENT, CONTENT))


def test_the_death_of_an_engine_is_noticed_by_its_neighbours_alone(tmp_path: Path) -> None:
    watches = {name: EngineWatch(identity(name), lambda: None, tmp_path) for name in ("x-engine", "y-engine")}
    dead = AckBoard(4, tmp_path, identity("x-engine"))
    with AckBoard(4, tmp_path, identity("y-engine")):
        assert not any(watch.look() for watch in watches.values())
        fcntl.flock(dead._board._file, fcntl.LOCK_UN)  # as the kernel does for a process that was killed
        assert {name: watch.look() for name, watch in watches.items()} == {"x-engine": True, "y-engine": False}
