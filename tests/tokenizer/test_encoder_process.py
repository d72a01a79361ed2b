"""A text that a tokenizer would encode for ever ends, and its request alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from autoglm_engine.errors import ArtifactError, EngineError, ShuttingDown
from autoglm_engine.tokenizer.encoder_process import EncoderLimits, EncoderProcess, EncodingTooSlow
from autoglm_engine.tokenizer.encoding import MAX_IN_PROCESS, BoundedEncoder, PlainEncoder
from tokenizers import Tokenizer

from tests.support.engine.fakes import byte_tokenizer
from tests.support.engine.split_tokenizers import write_split_only
from tests.tokenizer.conftest import Children

pytestmark = pytest.mark.slow

SLOW = r"\s+$"  # time grows with the square of a run of spaces, which an "x" ends
BOMB = "(a+)+$"
LIMITS = EncoderLimits(seconds=0.3, seconds_a_byte=0.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    byte_tokenizer().save(str(path))
    return path


@pytest.fixture
def process(path: Path) -> Iterator[EncoderProcess]:
    process = EncoderProcess(path)
    yield process
    process.close()


@pytest.mark.parametrize("text", ["", "a", "caf\u00e9 \x00 \U0001f600\n" * 3000])
@pytest.mark.parametrize("special_tokens", [False, True])
def test_ids_are_those_of_this_process(process: EncoderProcess, text: str, special_tokens: bool) -> None:
    plain = PlainEncoder(byte_tokenizer())
    expected = plain.encode(text, "text", special_tokens=special_tokens)
    found = process.encode(text, "text", special_tokens=special_tokens)
    assert found.dtype == expected.dtype and found.tolist() == expected.tolist()


def test_it_yields_to_this_process(process: EncoderProcess, children: Children) -> None:
    process.encode("a", "text", special_tokens=False)
    (worker,) = children()
    assert worker.nice() == min(psutil.Process().nice() + 5, 19)


def test_a_text_beyond_the_limit_ends_its_request_alone(tmp_path: Path) -> None:
    process = EncoderProcess(write_split_only(tmp_path / "tokenizer.json", SLOW), LIMITS)
    for _ in range(2):
        assert len(process.encode("a b", "text_input", special_tokens=False)) == 1
        with pytest.raises(
            EncodingTooSlow, match=r"^text_input takes too long to encode with the model's tokenizer; it was stopped$"
        ):
            process.encode(" " * 60_000 + "x", "text_input", special_tokens=False)
    process.close()


def test_what_makes_the_library_fail_ends_its_request_alone(tmp_path: Path) -> None:
    process = EncoderProcess(write_split_only(tmp_path / "tokenizer.json", BOMB))
    with pytest.raises(EngineError, match="the tokenizer failed on messages: PanicException: Onig"):
        process.encode("a" * 40 + "!", "messages", special_tokens=False)
    assert len(process.encode("aaa", "messages", special_tokens=False)) == 1
    process.close()


def test_a_process_that_somebody_ended_is_started_again(process: EncoderProcess, children: Children) -> None:
    ids = process.encode("one", "text", special_tokens=False).tolist()
    (child,) = children()
    child.kill()
    assert process.encode("one", "text", special_tokens=False).tolist() == ids


def test_another_reads_the_file_that_was_there(process: EncoderProcess, path: Path) -> None:
    path.unlink()
    path.write_text("{}", encoding="utf-8")
    other = process.another()
    assert (
        other.encode("one", "text", special_tokens=False).tolist()
        == process.encode("one", "text", special_tokens=False).tolist()
    )
    with pytest.raises(ArtifactError, match="cannot be read"):
        EncoderProcess(path).encode("one", "text", special_tokens=False)
    other.close()


def test_short_texts_are_encoded_here_unless_a_pattern_may_take_for_ever(
    path: Path, tmp_path: Path, children: Children
) -> None:
    before = psutil.Process().num_fds()
    tame = BoundedEncoder.load(path, Tokenizer.from_file(str(path)))
    bomb = write_split_only(tmp_path / "bomb.json", BOMB)
    wild = BoundedEncoder.load(bomb, Tokenizer.from_file(str(bomb)), LIMITS)
    assert (tame.is_tame, wild.is_tame) == (True, False)
    tame.encode("a" * MAX_IN_PROCESS, "text", special_tokens=False)
    assert not children()
    tame.encode("a" * (MAX_IN_PROCESS + 1), "text", special_tokens=False)
    assert len(children()) == 1
    began = time.process_time()
    with pytest.raises(EngineError):
        wild.encode("a" * 30 + "!", "text", special_tokens=False)
    assert time.process_time() - began < 0.25  # nothing of it is computed here
    tame.close()
    wild.close()
    del tame, wild
    assert not children() and psutil.Process().num_fds() == before


def test_it_can_be_ended_from_another_thread(tmp_path: Path, children: Children) -> None:
    process = EncoderProcess(write_split_only(tmp_path / "tokenizer.json", SLOW), EncoderLimits(seconds=600.0))
    process.encode("a", "text", special_tokens=False)
    threading.Timer(0.3, process.kill).start()
    with pytest.raises(EngineError, match="the process that encodes ended"):
        process.encode(" " * 200_000 + "x", "text", special_tokens=False)
    with pytest.raises(ShuttingDown):
        process.encode("a", "text", special_tokens=False)
    assert not children()
