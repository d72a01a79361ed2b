"""The tokenizer follows the engine: what waits for an artifact that is served no more is told so, the rest goes on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from autoglm_engine.errors import Unavailable
from autoglm_engine.triton.followed_artifact import FollowedArtifact
from autoglm_engine.triton.tokenizer_dispatcher import TokenizerDispatcher
from autoglm_engine.triton.tokenizer_service import TokenizerService

from tests.support.engine.small_service import write_artifact
from tests.triton.test_tokenizer_dispatcher import SEAL, FakeBoard, KeptAnswer, tensors


class Board(FakeBoard):
    """Of an engine that serves `artifact`."""

    artifact = ""

    def current(self) -> Any:
        if not self.artifact:
            raise Unavailable("the engine is not loaded; try again later")
        return SimpleNamespace(seal=SEAL, artifact=self.artifact)


def asked(service: TokenizerService, **values: Any) -> KeptAnswer:
    answer = KeptAnswer()
    service.take(tensors(**values), "", 0, answer)
    return answer


def test_the_desk_is_that_of_the_artifact_that_is_served(tmp_path: Path) -> None:
    manifest, board = write_artifact(tmp_path), Board()
    service = TokenizerService(tmp_path, board)
    service.read(lambda: None)
    assert asked(service, text_input="ab").wait().failures == [
        ("UNAVAILABLE", "the engine is not loaded; try again later")
    ]
    board.artifact = manifest.short_digest
    assert asked(service, text_input="ab").wait().sent
    board.artifact = "0" * 16
    ((code, told),) = asked(service, text_input="ab").wait().failures
    assert code == "UNAVAILABLE" and "a reload is due or under way" in told
    service.close()


@pytest.mark.parametrize(
    ("is_end", "sentence"),
    [(False, "the model was loaded anew; send the request again"), (True, "the server is shutting down")],
)
def test_who_waits_is_told_why_it_ends(tmp_path: Path, is_end: bool, sentence: str) -> None:
    manifest, board = write_artifact(tmp_path), Board()
    board.artifact = manifest.short_digest
    service = TokenizerService(tmp_path, board)
    service.read(lambda: None)
    dispatcher = service._dispatchers.of(manifest.short_digest)
    if is_end:
        service.close()
    else:
        service._let_go(dispatcher)
    answer = KeptAnswer()
    dispatcher.take(tensors(messages='[{"role": "user", "content": "x"}]'), "", 0, answer)
    assert answer.wait().failures == [("UNAVAILABLE", sentence)]
    service.close()


def test_what_breaks_while_an_artifact_is_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, board = write_artifact(tmp_path), Board()
    board.artifact = manifest.short_digest
    service = TokenizerService(tmp_path, board)

    def broken(followed: FollowedArtifact[TokenizerDispatcher], artifact: str) -> TokenizerDispatcher:
        raise OSError("the disk is gone")

    monkeypatch.setattr(FollowedArtifact, "of", broken)
    assert asked(service, text_input="ab").wait().failures == [("INTERNAL", "the tokenizer failed: OSError")]
