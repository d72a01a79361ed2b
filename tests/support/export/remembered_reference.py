"""transformers' answers, each computed once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from autoglm_engine.core import TokenIds
from autoglm_export.parity.reference import Reference


@dataclass(frozen=True, slots=True)
class RememberedReference(Reference):
    answers: dict[bytes, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, reference: Reference) -> RememberedReference:
        return cls(reference.model, reference.version)

    def logits(self, ids: TokenIds) -> Any:
        key = ids.tobytes()
        if key not in self.answers:
            self.answers[key] = Reference.logits(self, ids)
        return self.answers[key]
