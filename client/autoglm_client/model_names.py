"""What the models that work together are called: the ensemble's name says the others'.

The families of one server: autoglm with tokenizer, engine, detokenizer, embedder and vision; any other X with
X-tokenizer, X-engine, X-detokenizer, X-embedder and X-vision.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ENSEMBLE = "autoglm"
PARTS = ("tokenizer", "engine", "detokenizer", "embedder", "vision")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}")


@dataclass(frozen=True, slots=True)
class ModelNames:
    ensemble: str
    tokenizer: str
    engine: str
    detokenizer: str
    embedder: str
    vision: str

    @classmethod
    def of(cls, ensemble: str) -> ModelNames:
        prefix = "" if ensemble == ENSEMBLE else f"{ensemble}-"
        return cls(ensemble, *(prefix + part for part in PARTS))

    def of_default(self, model: str) -> str:
        """What the default family's `model` is called here."""
        return self.ensemble if model == ENSEMBLE else str(getattr(self, model))

    @property
    def all(self) -> tuple[str, ...]:
        return self.tokenizer, self.engine, self.detokenizer, self.embedder, self.vision, self.ensemble

    @property
    def steps(self) -> tuple[str, str, str]:
        """Of the ensemble, in their order."""
        return self.tokenizer, self.engine, self.detokenizer


def name_trouble(name: str) -> str | None:
    """Why a family cannot be called so, in one sentence; None where it can. No name of one family is one of
    another's."""
    if not _NAME.fullmatch(name):
        return (
            f"the name is {name!r:.80}; allowed are 1 to 48 letters, digits, . _ and -, of which the first is a "
            "letter or digit"
        )
    if name in PARTS or name.endswith(tuple(f"-{part}" for part in PARTS)):
        return (
            f"the name is {name!r:.80}; it must not be, or end with -, {', '.join(PARTS[:-1])} or {PARTS[-1]}: "
            "steps are called so"
        )
    return None
