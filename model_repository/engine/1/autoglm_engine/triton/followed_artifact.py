"""What the tokenizer and the detokenizer have of the artifact that the engine serves. The engine is loaded anew when an
artifact is replaced; they are not, and follow it."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from autoglm_engine.errors import ArtifactError, Unavailable
from autoglm_engine.manifest import Manifest

Part = TypeVar("Part")
_PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.05


class FollowedArtifact(Generic[Part]):
    """`load` reads a part of the artifact in a folder, `let_go` ends one. Of the last `most` artifacts that were asked
    for the parts are kept, since an engine that was replaced still answers what it has begun."""

    def __init__(
        self,
        folder: Path,
        load: Callable[[Path, Manifest], Part],
        *,
        most: int,
        let_go: Callable[[Part], object] = lambda part: None,
    ) -> None:
        self._folder = folder
        self._load = load
        self._let_go = let_go
        self._most = most
        self._parts: OrderedDict[str, Part] = OrderedDict()

    def read(self, served: Callable[[], str | None] = lambda: None, patience: float = _PATIENCE_SECONDS) -> None:
        """What lies in the folder now: at the start. `served`: the artifact of an engine that answers requests
        meanwhile, None without one. Where that is another artifact, the engine is being loaded anew beside this model,
        and the process that this one is to replace goes on until the engine is there. Raises ArtifactError, also where
        it does not come within `patience` seconds: then that process stays, which follows the engine by itself."""
        give_up_at = time.monotonic() + patience
        artifact, part = self._read_any()  # at once, since from the moment it is served there is somebody who waits
        while (now := served()) not in (None, artifact):
            if time.monotonic() > give_up_at:
                self._let_go(part)
                raise ArtifactError(
                    f"the engine serves the artifact {now}, and {artifact} lies in {self._folder}: "
                    "load the engine again, which is enough"
                )
            time.sleep(_POLL_SECONDS)
            if Manifest.load(self._folder).short_digest != artifact:
                self._let_go(part)
                artifact, part = self._read_any()
        self._keep(artifact, part)

    def _read_any(self) -> tuple[str, Part]:
        manifest = Manifest.load(self._folder)
        return manifest.short_digest, self._load(self._folder, manifest)

    def of(self, artifact: str) -> Part:
        """`artifact`: `Manifest.short_digest`. Raises Unavailable where another one lies in the folder by now."""
        if artifact in self._parts:
            self._parts.move_to_end(artifact)
            return self._parts[artifact]
        part = self._read(artifact)
        self._keep(artifact, part)
        return part

    def close(self) -> None:
        """Let go of all."""
        while self._parts:
            self._let_go(self._parts.popitem()[1])

    def _read(self, artifact: str) -> Part:
        try:
            manifest = Manifest.load(self._folder)
            if manifest.short_digest != artifact:
                raise ArtifactError(f"{manifest.short_digest} lies in {self._folder}")
            part = self._load(self._folder, manifest)
            manifest.check_unchanged(self._folder)
        except ArtifactError as error:
            raise Unavailable(
                f"the engine serves the artifact {artifact:.16}, which cannot be read any more ({error}): "
                "a reload is due or under way; send the request again"
            ) from None
        return part

    def _keep(self, artifact: str, part: Part) -> None:
        self._parts[artifact] = part
        while len(self._parts) > self._most:
            self._let_go(self._parts.popitem(last=False)[1])
