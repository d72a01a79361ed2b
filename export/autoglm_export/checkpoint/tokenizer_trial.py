"""A tokenizer is tried on hostile texts before it is taken: its patterns are the checkpoint's, and the library's engine
for them backtracks. What takes long here would hold up a server with every such request.

The texts: long runs of each kind of character, which show time that grows with the square of the length, and short runs
between beginnings and ends made of the pattern's own letters, which show time that doubles with each character.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from autoglm_engine.errors import ArtifactError, EngineError
from autoglm_engine.tokenizer.encoder_process import EncoderLimits, EncoderProcess, EncodingTooSlow
from autoglm_engine.tokenizer.encoding import MAX_IN_PROCESS
from autoglm_engine.tokenizer.patterns import patterns_of

from autoglm_export.errors import CheckpointError

LIMITS = EncoderLimits(seconds=1.0, load_seconds=120.0)  # of computing; what is published takes a twentieth
LONG_RUN = MAX_IN_PROCESS  # characters: a server encodes as many in a process that it cannot end
SHORT_RUN = 40
_RUNS = (
    "a",
    "A",
    "aA",
    "1",
    " ",
    "\n",
    "\t",
    " \n",
    "a ",
    " a",
    "a1",
    "!",
    ".",
    "-",
    "'s",
    "_",
    "é",
    "你",
    "😀",
    "e\u0301",
)
_ENDS = ("", "!", "a", "1", "\n", " ", "\x00")
_MAX_OF_A_PATTERN = 24  # words of its own that are tried
_ESCAPED = re.compile(r"\\(?:[pP]\{[^}]*\}|x\{[0-9A-Fa-f]+\}|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|.)", re.DOTALL)
_WORD = re.compile(r"[^\W_]+|[^\w\s()\[\]{}|?*+^$]", re.UNICODE)
_RANGE = re.compile(r"(\w)-(\w)")


def try_tokenizer(content: bytes) -> None:
    """`content`: a tokenizer.json. Raises CheckpointError, in one sentence that names the pattern, where a text takes
    longer than it may, or makes the library fail."""
    patterns, of_decoder = _read_patterns(content)
    probes = _texts(patterns)
    with TemporaryDirectory(prefix="autoglm-trial-") as name:
        folder = Path(name)
        path = folder / "tokenizer.json"
        path.write_bytes(content)
        if failing := _first_failure(path, probes):
            probe, reason = failing
            guilty = next((pattern for pattern in patterns if _failure_alone(folder, pattern, [probe])), None)
            raise _refused(guilty, probe, reason)
        for pattern in of_decoder:  # which answers go through
            if failing := _failure_alone(folder, pattern, probes):
                raise _refused(pattern, *failing)


def _read_patterns(content: bytes) -> tuple[list[str], list[str]]:
    """(of what encodes, of what decodes)."""
    try:
        text = content.decode()
        return patterns_of(text), patterns_of(text, ("decoder",))
    except (ValueError, RecursionError, AttributeError) as error:
        raise CheckpointError(f"tokenizer.json cannot be read: {error}") from None


def _refused(pattern: str | None, probe: str, reason: str) -> CheckpointError:
    named = "tokenizer.json" if pattern is None else f"the pattern {pattern!r:.200} of tokenizer.json"
    return CheckpointError(f"{named} {reason} on a text of {len(probe)} characters that begins {probe[:20]!r}")


def _first_failure(path: Path, texts: Sequence[str]) -> tuple[str, str] | None:
    """(the text, what the tokenizer does on it)."""
    encoder = EncoderProcess(path, LIMITS)
    try:
        for text in texts:
            try:
                encoder.encode(text, "it", special_tokens=True)
            except EngineError as error:
                return text, _reason(error)
    finally:
        encoder.close()
    return None


def _reason(error: EngineError) -> str:
    if isinstance(error, ArtifactError):
        raise CheckpointError(f"tokenizer.json cannot be read: {error}")
    if isinstance(error, EncodingTooSlow):
        return f"computes for more than {LIMITS.seconds:g} s"
    return "makes the tokenizers library fail"


def _failure_alone(folder: Path, pattern: str, texts: Sequence[str]) -> tuple[str, str] | None:
    path = folder / "alone.json"
    path.write_text(json.dumps(_alone(pattern)), encoding="utf-8")
    return _first_failure(path, texts)


def _alone(pattern: str) -> dict[str, Any]:
    """A tokenizer that only splits."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    none: dict[str, Any] = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    model = {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"}
    return {"version": "1.0", **none, "added_tokens": [], "pre_tokenizer": split, "model": model}


def _texts(patterns: Sequence[str]) -> list[str]:
    own = list(dict.fromkeys(word for pattern in patterns for word in _own_words(pattern)))
    runs = list(dict.fromkeys([*_RUNS, *own]))
    return [_short_runs(run, own) for run in runs] + [_long_run(run, own) for run in runs]


def _own_words(pattern: str) -> list[str]:
    """Letters, signs and words that stand in the pattern, and what lies in its ranges."""
    signs = [escape[1] for escape in _ESCAPED.findall(pattern) if not escape[1].isalnum()]
    plain = _ESCAPED.sub(lambda match: _unescaped(match[0]), pattern)
    words = [word for word in _WORD.findall(plain) if len(word) <= SHORT_RUN]
    ends = [character for pair in _RANGE.findall(plain) for character in pair]
    return list(dict.fromkeys([*words, *ends, *signs, *(word[0] for word in words)]))[:_MAX_OF_A_PATTERN]


def _unescaped(escape: str) -> str:
    if escape[1] in "xu" and len(escape) > 2:
        number = int(escape[2:].strip("{}"), 16)
        return chr(number) if number < 0x110000 and not 0xD800 <= number < 0xE000 else " "
    return " " if escape[1].isalnum() else escape[1]


def _short_runs(run: str, own: Sequence[str]) -> str:
    """Each between every beginning and end, with nothing before that belongs to it. A word of the pattern stands behind
    what belongs to nothing, too: an engine that misses it there does not even begin."""
    ends = [*_ENDS, *own[:8], *("\x00" + word for word in own[:8])]
    pieces = (
        f"\x01{begin}{run * (SHORT_RUN // len(run))}{end}" for begin in ("", *own[:8]) for end in dict.fromkeys(ends)
    )
    return "\n".join(pieces)


def _long_run(run: str, own: Sequence[str]) -> str:
    return f"{run * (LONG_RUN // len(run))}\x00\n{' '.join(own)}"
