"""The user's folder of exported models, for installations that have no checkout: `models/NAME` and `embedder`.

It is $AUTOGLM_HOME, else where the system keeps a program's data for this user, such as ~/.local/share/autoglm-triton.
Nothing is ever written into the installed package.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from autoglm_client.model_names import name_trouble

from .errors import CommandError

HOME_VARIABLE = "AUTOGLM_HOME"
_APPLICATION = "autoglm-triton"
_MANIFEST = "manifest.json"


def home() -> Path:
    """Absolute, whether it exists or not. Raises CommandError where the environment names what is no folder."""
    if chosen := os.environ.get(HOME_VARIABLE):
        folder = Path(chosen).expanduser().absolute()
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not existing.is_dir():
            raise CommandError(f"{HOME_VARIABLE} is {chosen!r}; it must name a folder, and {existing} is none")
        return folder
    from platformdirs import user_data_path

    return Path(user_data_path(_APPLICATION, appauthor=False))


def models_folder() -> Path:
    return home() / "models"


def home_embedder() -> Path:
    return home() / "embedder"


def is_exported(artifact: Path) -> bool:
    return (artifact / _MANIFEST).is_file()


def model_folder(name: str) -> Path:
    """Where the model of this name is, or will be. Raises CommandError for a name that cannot be given."""
    if trouble := name_trouble(name):
        raise CommandError(trouble)
    return models_folder() / name


def model_names() -> list[str]:
    """Of the exported models, in order."""
    found = models_folder().glob(f"*/{_MANIFEST}")
    return sorted(path.parent.name for path in found if not name_trouble(path.parent.name))


def named_model(name: str) -> Path:
    """Raises CommandError where there is none."""
    folder = model_folder(name)
    if not is_exported(folder):
        raise CommandError(f"there is no exported model {name!r} in {models_folder()}; {_others()}")
    return folder


def only_model(otherwise: str) -> Path:
    """The one that is exported; where there is none yet, the folder of `otherwise`. Raises CommandError for several."""
    names = model_names()
    if len(names) > 1:
        raise CommandError(f"{len(names)} models are exported: {', '.join(names)}; choose one with --artifact NAME")
    return model_folder(names[0] if names else otherwise)


def artifact_of(chosen: Path) -> Path:
    """`chosen` is a folder that has an artifact, or the name of an exported model; else it is taken for a folder."""
    is_name = len(chosen.parts) == 1 and not is_exported(chosen)
    return models_folder() / chosen if is_name and chosen.name in model_names() else chosen


def name_for(checkpoint: str) -> str:
    """The name of an export that was given none: the checkpoint's, without what a name cannot have."""
    path = Path(checkpoint).resolve()
    text = re.sub(r"-\d{5}-of-\d{5}$", "", path.stem) if path.suffix.lower() == ".gguf" else path.name
    name = re.sub("[^A-Za-z0-9._-]+", "-", text).strip("._-")[:48]
    if name_trouble(name):
        raise CommandError(f"the checkpoint {checkpoint} gives the export no name; choose one with --name")
    return name


def remove_model(name: str) -> Path:
    """It is gone at once for who looks, its files a moment later; a server that has it loaded goes on. What a crash
    leaves, the next export of that name removes, as it does with its own. A link is removed, not what it leads to."""
    folder = named_model(name)
    if folder.is_symlink():
        folder.unlink()
        return folder
    hidden = folder.with_name(f".{name}.replaced-{os.getpid()}")
    folder.rename(hidden)
    shutil.rmtree(hidden)
    return folder


def _others() -> str:
    """What is exported, for who looks for something else."""
    names = model_names()
    return f"it has {', '.join(names)}" if names else "`autoglm export` makes one"
