"""Asks a running server what its users rely on, and says line by line what holds. Exit code 0, or 1 where something
does not.

    python3 smoke.py --http http://127.0.0.1:8000 --metrics http://127.0.0.1:8002/metrics [--reload] [--model autoglm]

It speaks Triton's HTTP alone and needs the standard library alone, so it runs on any host and inside any container;
`smoke.sh` starts a server for it. `--reload` unloads and loads models, which a server allows with
`--model-control-mode=explicit`. Nothing else may use the server meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

PROMPT = "Once upon a time there was"
NUM_STREAMS = 16
STREAM_TOKENS = 48
ROUNDS = 2
REQUEST_SECONDS = 120.0
SETTLE_SECONDS = 20.0  # for what should come within one or two
METRICS = ("requests_total", "waiting", "running", "kv_cache_usage", "tokens_out_total")


class Failed(Exception):
    """A check's finding, in one sentence."""


@dataclass(frozen=True)
class Server:
    http: str
    metrics: str
    model: str = "autoglm"
    engine: str = "engine"

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """(status, the answer's JSON, or its text where it is none)."""
        with self._asked(self.http, method, path, body) as response:
            return response.status, _json_of(response.read())

    def generate(self, **fields: Any) -> tuple[int, Any]:
        return self.ask("POST", f"/v2/models/{self.model}/generate", fields)

    def answer(self, **fields: Any) -> dict[str, Any]:
        """Of a request that must be served; the response cache has no part in it."""
        status, found = self.generate(text_input=PROMPT, cache="bypass", **fields)
        if status != 200:
            raise Failed(f"a request was answered {status}: {found}")
        return dict(found)

    def stream(self, **fields: Any) -> Iterator[dict[str, Any]]:
        """The responses of a streamed request; who stops reading closes the connection."""
        body = {"text_input": PROMPT, "cache": "bypass", "stream": True, **fields}
        with self._asked(self.http, "POST", f"/v2/models/{self.model}/generate_stream", body) as response:
            if response.status != 200:
                raise Failed(f"a stream was answered {response.status}: {_json_of(response.read())}")
            for line in response:
                if line.startswith(b"data: "):
                    piece = json.loads(line[6:])
                    if "error" in piece:
                        raise Failed(f"a stream ended with {piece['error']}")
                    yield piece

    def stats(self) -> dict[str, Any]:
        control = json.dumps({"stats": True})
        status, found = self.ask("POST", f"/v2/models/{self.engine}/generate", {"control": control})
        if status != 200:
            raise Failed(f"the engine answered {status} over /generate, which tritonserver has since 2.39: {found}")
        return dict(json.loads(bytes(found["event"])))

    def metrics_page(self) -> str:
        url = urllib.parse.urlsplit(self.metrics)
        with self._asked(f"{url.scheme}://{url.netloc}", "GET", url.path) as response:
            return str(response.read().decode())

    @contextlib.contextmanager
    def _asked(self, base: str, method: str, path: str, body: Any = None) -> Iterator[http.client.HTTPResponse]:
        """Straight to the server, whatever proxies there are."""
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(base).netloc, timeout=REQUEST_SECONDS)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            yield connection.getresponse()
        except OSError as error:
            raise Failed(f"{base}{path} cannot be asked: {error}") from None
        finally:
            connection.close()


def _json_of(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw.decode(errors="replace")[:300]


def wait_for(condition: Callable[[], bool], otherwise: str) -> float:
    """The seconds it took. Raises Failed."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > SETTLE_SECONDS:
            raise Failed(f"{otherwise} for {SETTLE_SECONDS:g} s")
        time.sleep(0.05)
    return time.monotonic() - began


# ---- the checks: each returns what was seen, and raises Failed


def probes(server: Server) -> str:
    for path in ("/v2/health/live", "/v2/health/ready", f"/v2/models/{server.model}/ready"):
        if (status := server.ask("GET", path)[0]) != 200:
            raise Failed(f"{path} is {status}")
    if not server.stats()["healthy"]:
        raise Failed("the engine says that it is not healthy")
    return f"triton {server.ask('GET', '/v2')[1]['version']}"


def ordinary_answer(server: Server) -> str:
    found = server.answer(max_tokens=8, ignore_eos=True)
    seen = (found["finish_reason"], found["completion_tokens"], bool(found["text_output"]))
    if seen != ("length", 8, True):
        raise Failed(f"8 tokens were asked for, and the answer is {found}")
    return repr(found["text_output"])


def streams_join_to_the_answer(server: Server) -> str:
    options = {"max_tokens": 24, "ignore_eos": True}
    whole = server.answer(**options)["text_output"]
    pieces = [piece["text_output"] for piece in server.stream(**options)]
    if "".join(pieces) != whole:
        raise Failed(f"the pieces join to {''.join(pieces)!r}, the answer is {whole!r}")
    return f"{len(pieces)} pieces"


def order_under_load(server: Server) -> str:
    """Each response says how many tokens came so far, so one that overtook another shows."""
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        results = [one for _ in range(ROUNDS) for one in pool.map(lambda _: _out_of_order(server), range(NUM_STREAMS))]
    if wrong := [one for one in results if one]:
        raise Failed(f"{len(wrong)} of {len(results)} streams came out of order, one as {wrong[0]}")
    return f"{len(results)} streams of {STREAM_TOKENS} tokens, {NUM_STREAMS} at once"


def _out_of_order(server: Server) -> list[int]:
    """The numbers of tokens as they came, where that is not their order."""
    pieces = list(server.stream(max_tokens=STREAM_TOKENS, ignore_eos=True, temperature=1.0))
    counts = [piece["completion_tokens"] for piece in pieces]
    ends = [place for place, piece in enumerate(pieces) if piece["finish_reason"]]
    is_whole = ends == [len(pieces) - 1] and counts[-1] == STREAM_TOKENS and counts == sorted(counts)
    return [] if is_whole else counts


def a_client_that_leaves(server: Server) -> str:
    stream = server.stream(**_longest(server))
    for _ in range(3):
        next(stream)
    stream.close()
    took = wait_for(lambda: not server.stats()["running"], "the slot of a client that had left stayed busy")
    return f"its slot was free after {took:.1f} s"


def _longest(server: Server) -> dict[str, Any]:
    control = json.dumps({"limits": True})
    found = server.ask("POST", f"/v2/models/{server.engine}/generate", {"control": control})[1]
    limits = json.loads(bytes(found["event"]))
    return {"max_tokens": max(1, limits["max_length"] - 64), "ignore_eos": True}


def a_deadline(server: Server) -> str:
    found = server.answer(**_longest(server), timeout=200_000)
    if found["finish_reason"] != "deadline":
        raise Failed(f"a request of 200,000 us ended with {found['finish_reason']}")
    return f"after {found['completion_tokens']} tokens"


def errors(server: Server) -> str:
    for fields, sentence in (
        ({"text_input": PROMPT, "top_p": 0.0}, "top_p is 0; it must be above 0 and at most 1"),
        ({"text_input": PROMPT, "temprature": 1}, "unknown option temprature"),
        ({"text_input": PROMPT, "messages": "[]"}, "both are set"),
    ):
        status, found = server.generate(**fields)
        said = found.get("error", found) if isinstance(found, dict) else found
        if status < 400 or sentence not in str(said):
            raise Failed(f"{fields} was answered {status}: {said}")
    ordinary_answer(server)
    return "each one sentence, and the server goes on"


def metrics(server: Server) -> str:
    wanted = [f"autoglm_{name}" for name in METRICS]

    def missing() -> list[str]:
        page = server.metrics_page()
        return [name for name in wanted if f"\n{name}" not in page]

    if missing():
        with contextlib.suppress(Failed):
            wait_for(lambda: not missing(), "")
    if lacking := missing():
        raise Failed(f"the page lacks {', '.join(lacking)}")
    page = server.metrics_page()
    histograms = sum(line.startswith("# TYPE autoglm_") and line.endswith("histogram") for line in page.splitlines())
    return f"{page.count('# TYPE autoglm_')} of autoglm, {histograms} of them histograms"


def reload_of_the_engine(server: Server) -> str:
    """Triton leaves a model alone whose version folder is as it was, and says 200 all the same."""
    steps = server.stats()["steps"]
    took = _load(server, server.engine)
    is_new = server.stats()["steps"] < steps
    ordinary_answer(server)
    return f"in {took:.1f} s" if is_new else "nothing changed in its folder, so Triton left it"


def reload(server: Server) -> str:
    _control(server, server.model, "unload", {"unload_dependents": True})
    wait_for(lambda: server.ask("GET", f"/v2/models/{server.model}/ready")[0] != 200, "an unloaded model stayed ready")
    took = _load(server, server.model)
    ordinary_answer(server)
    return f"unload, and load in {took:.1f} s"


def _load(server: Server, model: str) -> float:
    began = time.monotonic()
    _control(server, model, "load", {})
    ready = f"/v2/models/{model}/ready"
    wait_for(lambda: server.ask("GET", ready)[0] == 200, f"{model} was loaded and not ready")
    return time.monotonic() - began


def _control(server: Server, model: str, verb: str, parameters: dict[str, Any]) -> None:
    status, found = server.ask("POST", f"/v2/repository/models/{model}/{verb}", {"parameters": parameters})
    if status != 200:
        raise Failed(f"{verb} of {model} was answered {status}: {found}")


CHECKS = (
    probes,
    ordinary_answer,
    streams_join_to_the_answer,
    order_under_load,
    a_client_that_leaves,
    a_deadline,
    errors,
    metrics,
)


def run(server: Server, *, with_reload: bool, show: Callable[[str], object] = print) -> int:
    """How many checks failed."""
    num_failed = 0
    for check in (*CHECKS, *((reload_of_the_engine, reload, order_under_load, probes) if with_reload else ())):
        name = check.__name__.replace("_", " ")
        try:
            show(f"ok    {name}: {check(server)}")
        except (Failed, KeyError, TypeError, ValueError, http.client.HTTPException, OSError) as error:
            num_failed += 1
            show(f"FAIL  {name}: {error if isinstance(error, Failed) else repr(error)}")
            if not is_there(server):
                show("FAIL  server: it has ended, so nothing else was asked")
                return num_failed + 1
    return num_failed


def is_there(server: Server) -> bool:
    with contextlib.suppress(Failed):
        return server.ask("GET", "/v2/health/live")[0] > 0
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--http", required=True, help="the server's HTTP address, as http://127.0.0.1:8000")
    parser.add_argument("--metrics", required=True, help="where its metrics are, as http://127.0.0.1:8002/metrics")
    parser.add_argument("--model", default="autoglm", help="the ensemble's name")
    parser.add_argument("--engine", default="engine", help="the engine's name")
    parser.add_argument("--reload", action="store_true", help="also unload and load the models")
    given = parser.parse_args()
    server = Server(given.http, given.metrics, given.model, given.engine)
    sys.exit(1 if run(server, with_reload=given.reload, show=lambda line: print(line, flush=True)) else 0)


if __name__ == "__main__":
    main()
