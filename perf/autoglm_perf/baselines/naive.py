"""The naive default that most people start with: transformers `generate` in float32, one request at a time behind HTTP.

`python -m autoglm_perf.baselines.naive CHECKPOINT.gguf PORT` serves `POST / {"prompt", "max_tokens"}`; it prints
`ready` once.
"""

from __future__ import annotations

import argparse
import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any


def load_model(checkpoint: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(checkpoint.parent), "gguf_file": checkpoint.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    return AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval(), tokenizer


def answer(model: Any, tokenizer: Any, prompt: str, max_tokens: int) -> dict[str, Any]:
    """Exactly `max_tokens` greedy tokens."""
    import torch

    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=max_tokens, min_new_tokens=max_tokens, do_sample=False)
    completion = output[0, inputs["input_ids"].shape[1] :]
    return {"text": tokenizer.decode(completion), "tokens": len(completion)}


def serve(checkpoint: Path, port: int) -> None:
    model, tokenizer = load_model(checkpoint)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(answer(model, tokenizer, request["prompt"], request["max_tokens"])).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet: the caller times the requests."""

    with HTTPServer(("127.0.0.1", port), Handler) as server:
        print("ready", flush=True)
        server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a .gguf file")
    parser.add_argument("port", type=int, help="where it listens, on 127.0.0.1")
    given = parser.parse_args()
    serve(given.checkpoint, given.port)


if __name__ == "__main__":
    main()
