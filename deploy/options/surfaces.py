"""Every file that the table of options is written into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .configs import MODELS, config
from .docs import extension_names, input_table, vllm_names
from .fields import client_module, command_module, gateway_module
from .regions import with_region

ROOT = Path(__file__).parents[2]
_MODULES = {
    "client/autoglm_client/option_fields.py": client_module,
    "client/autoglm_cli/options/answer_fields.py": command_module,
    "gateway/autoglm_gateway/api/extensions.py": gateway_module,
}
_DOCS: dict[str, tuple[str, Callable[[], str]]] = {
    "docs/architecture.md": ("options", input_table),
    "docs/gateway.md": ("extensions", extension_names),
    "docs/migration.md": ("vllm options", vllm_names),
}


def made_files(root: Path = ROOT) -> dict[str, str]:
    """Path -> the text that it should have."""
    made = {path: module() for path, module in _MODULES.items()}
    for model in MODELS:
        path = f"model_repository/{model}/config.pbtxt"
        made[path] = config(model, _read(root / path))
    for path, (name, text) in _DOCS.items():
        made[path] = with_region(_read(root / path), name, text())
    return made


def out_of_date(root: Path = ROOT) -> dict[str, str]:
    """Those of `made_files` that say something else now."""
    return {path: text for path, text in made_files(root).items() if _read(root / path) != text}


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""
