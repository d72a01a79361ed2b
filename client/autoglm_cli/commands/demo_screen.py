"""The end of `autoglm demo`: the small model that sees looks at a drawn phone screen, and its tap is drawn on it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from autoglm_client.client import Client
from autoglm_client.images.image import Image

from autoglm_cli.errors import CommandError, needs
from autoglm_cli.output import notes, summary_line, write_pieces
from autoglm_cli.server.local_server import LocalServer

from .export import run_export
from .serve import running

TASK, COLOUR = "Tap the red button", "red"
_LIMITS = {"runtime": "native", "max_slots": 4, "max_length": 512}
_SIZE = (1080, 2400)


def tap_on_a_screen(repository: Path) -> None:
    """Exports the model into a temporary folder, asks it about one screen, and says where the picture is."""
    screens = needs("autoglm_export.screens.screen", "export")
    checkpoint = needs("autoglm_export.screens.checkpoint", "export").CHECKPOINT
    screen = drawn_screen(screens)
    image = screens.draw(screen)
    notes().print(f"\n[bold]{TASK}[/]: a model of 2.6 million parameters looks at a drawn screen", markup=True)
    with tempfile.TemporaryDirectory(prefix="autoglm-demo-") as folder:
        artifact = Path(folder) / "artifact"
        run_export(str(checkpoint), artifact, check=False, chosen=_LIMITS)
        answer = _ask(LocalServer(repository, artifact=artifact, http=False), screens.png(image))
    picture = Path(tempfile.gettempdir()) / "autoglm-demo-tap.png"
    notes().print(mark(screens, screen, image, answer, picture), markup=False, soft_wrap=True)


def drawn_screen(screens: Any) -> Any:
    """The first of the seeds whose screen has the button that is asked for, among at least four."""
    candidates = (screens.random_screen(f"demo {seed}", size=_SIZE, num_buttons=5) for seed in range(1000))
    return next(screen for screen in candidates if any(button.colour == COLOUR for button in screen.buttons))


def mark(screens: Any, screen: Any, image: Any, answer: str, picture: Path) -> str:
    """Draws the tap into the file, and says in one line what it hit."""
    point = needs("autoglm_export.screens.questions", "export").tapped(answer)
    if point is None:
        raise CommandError(f"the model answered {answer!r:.80}, which is no tap")
    screens.with_tap(image, point).save(picture)
    inside = screen.button(colour=COLOUR).box.contains(point)
    return f"the tap is {'inside' if inside else 'outside'} the {COLOUR} button: {picture}"


def _ask(server: LocalServer, png: bytes) -> str:
    with running(server), Client(server.grpc_url) as client:
        client.wait_until_ready()
        question = {"role": "user", "content": [Image(png), TASK]}
        with client.stream([question], max_tokens=24, temperature=0.0) as stream:
            write_pieces(stream)
        notes().print(summary_line(stream.result))
        return str(stream.result.text)
