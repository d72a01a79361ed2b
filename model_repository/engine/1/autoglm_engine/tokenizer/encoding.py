"""Text to token ids: in this process where that is sure to be quick, in one that can be ended where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from autoglm_engine.core import TokenIds

from .encoder_process import EncoderLimits, EncoderProcess
from .patterns import is_tame, patterns_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_IN_PROCESS = 8192  # characters; some 5 ms of a core, without the interpreter's lock


class Encoder(Protocol):
    @property
    def is_tame(self) -> bool:
        """No pattern of the tokenizer can take for ever, so that short texts are encoded here."""
        ...

    def encode(self, text: str, name: str, *, special_tokens: bool) -> TokenIds:
        """int32 [num_tokens]. `name`: of the text, for errors. Raises EngineError."""
        ...

    def another(self) -> Encoder:
        """To be used beside this one."""
        ...

    def close(self) -> None:
        """Let go of its process; it starts another where it is used again."""
        ...

    def kill(self) -> None:
        """Ends what is being encoded, from any thread."""
        ...


class PlainEncoder:
    """All in this process, however long it takes: for programs that ask it about texts of their own."""

    is_tame = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer

    def encode(self, text: str, name: str, *, special_tokens: bool) -> TokenIds:
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=special_tokens).ids, dtype=np.int32)

    def another(self) -> PlainEncoder:
        return self

    def close(self) -> None:
        pass

    def kill(self) -> None:
        pass


class BoundedEncoder:
    """`process` has the same tokenizer."""

    def __init__(self, plain: PlainEncoder, process: EncoderProcess, *, is_tame: bool) -> None:
        self._plain = plain
        self._process = process
        self.is_tame = is_tame

    @classmethod
    def load(cls, path: Path, tokenizer: Tokenizer, limits: EncoderLimits | None = None) -> BoundedEncoder:
        """`tokenizer`: of the tokenizer.json at `path`."""
        patterns = patterns_of(path.read_text(encoding="utf-8"))
        return cls(PlainEncoder(tokenizer), EncoderProcess(path, limits), is_tame=all(map(is_tame, patterns)))

    def encode(self, text: str, name: str, *, special_tokens: bool) -> TokenIds:
        encoder = self._plain if self.is_tame and len(text) <= MAX_IN_PROCESS else self._process
        return encoder.encode(text, name, special_tokens=special_tokens)

    def another(self) -> BoundedEncoder:
        return BoundedEncoder(self._plain, self._process.another(), is_tame=self.is_tame)

    def close(self) -> None:
        self._process.close()

    def kill(self) -> None:
        self._process.kill()
