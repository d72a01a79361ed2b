"""Clients that mean harm: each kind asks, again and again, for what costs a server the most, within what one key may
ask.

    python tests/support/server/hostile_clients.py KIND PORT KEY SECONDS

prints a line when it begins, and in the end how often it asked and how often each status was the answer. A process of
its own, and nice: what it computes itself is not what a server suffers.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx

ADDRESS = "127.0.0.66"  # they come from elsewhere than others
CHATS, TEXTS = "/v1/chat/completions", "/v1/completions"
_WORKERS = 4
_NICE = 10
_MAX_BYTES = 60_000  # of a guide; the server takes 65,536


@dataclass(frozen=True, slots=True)
class Target:
    port: int
    key: str
    http: httpx.AsyncClient
    chance: random.Random

    async def post(self, path: str, body: dict[str, Any]) -> str:
        return await self.send(path, json.dumps(body).encode())

    async def send(self, path: str, content: bytes, kind: str = "application/json") -> str:
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": kind}
        return str((await self.http.post(path, content=content, headers=headers)).status_code)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, local_addr=(ADDRESS, 0))

    def head(self, *more: str) -> bytes:
        lines = ["Host: gateway", f"Authorization: Bearer {self.key}", "Content-Type: application/json", *more]
        return "\r\n".join([f"POST {CHATS} HTTP/1.1", *lines, "", ""]).encode()


def _chat(**more: Any) -> dict[str, Any]:
    return {"model": "autoglm", "messages": [{"role": "user", "content": "Go on."}], "max_tokens": 4, **more}


def _grown(grow: Callable[[int], str], most: int = _MAX_BYTES) -> list[str]:
    parts, size = list[str](), 0
    while size < most:
        parts.append(grow(len(parts)))
        size += len(parts[-1]) + 4
    return parts


async def schemas(target: Target) -> str:
    return await target.post(CHATS, _chat(guided_json=target.chance.choice(_SCHEMAS)(target.chance)))


def _many_properties(chance: random.Random) -> dict[str, Any]:
    names = _grown(lambda number: f"p{chance.getrandbits(40):x}{number}" + " " * 50)
    properties = {
        name.strip(): {"type": "string", "pattern": f"^([a-z]{{1,{number + 1}}}|[0-9]+x)*y{{0,{number}}}$"}
        for number, name in enumerate(names[:500])
    }
    return {"type": "object", "properties": properties, "required": list(properties)[::2]}


def _long_enumeration(chance: random.Random) -> dict[str, Any]:
    return {"enum": _grown(lambda number: f"{chance.getrandbits(64):x}")}


def _deep_alternatives(chance: random.Random) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "maxLength": chance.randrange(1000, 60_000)}
    for depth in range(40):
        items = schema if depth < 6 else {}
        inner = {"type": "object", "properties": {f"k{depth}": schema}}
        schema = {"anyOf": [inner, {"type": "array", "items": items}]}
    return schema


def _counted_items(chance: random.Random) -> dict[str, Any]:
    items = {"type": "array", "items": {"type": "integer"}, "minItems": chance.randrange(500, 5000), "maxItems": 9000}
    return {"type": "object", "properties": {f"a{number}": items for number in range(20)}}


def _all_together(chance: random.Random) -> dict[str, Any]:
    parts = [
        {"properties": {f"q{chance.getrandbits(20)}": {"pattern": f"^(a|b|ab){{{n},{n + 50}}}$"}}} for n in range(60)
    ]
    return {"type": "object", "allOf": parts, "additionalProperties": False}


_SCHEMAS: list[Callable[[random.Random], dict[str, Any]]] = [
    _many_properties,
    _long_enumeration,
    _deep_alternatives,
    _counted_items,
    _all_together,
]


async def grammars(target: Target) -> str:
    return await target.post(CHATS, _chat(**target.chance.choice(_GUIDES)(target.chance)))


def _doubling(chance: random.Random) -> dict[str, str]:
    rules = [f"r{n}: r{n + 1} r{n + 1} | r{n + 1}" for n in range(40)]
    return {"guided_grammar": "\n".join([f"start: r0 /{chance.getrandbits(30):x}/", *rules, 'r40: "a" | "ab"'])}


def _words(chance: random.Random) -> list[str]:
    return _grown(lambda number: f"{chance.getrandbits(80):x}", 31_000)


def _vocabulary(chance: random.Random) -> dict[str, str]:
    return {"guided_grammar": "start: (word word?)+\nword: " + " | ".join(f'"{word}"' for word in _words(chance))}


def _circle(chance: random.Random) -> dict[str, str]:
    rules = [f"t{n}: /[a-z]{{0,{n + 1}}}{chance.randrange(10)}/ | t{(n + 1) % 600}" for n in range(600)]
    return {"guided_grammar": "\n".join(["start: " + " ".join(f"t{n}" for n in range(600)), *rules])}


def _expression(chance: random.Random) -> dict[str, str]:
    expressions = [
        f"(a?){{{chance.randrange(300, 900)}}}a{{500}}",
        f"(([a-z]{{1,40}}[0-9]?){{1,40}}\\.){{1,{chance.randrange(5, 40)}}}",
        "|".join(_words(chance)),
    ]
    return {"guided_regex": chance.choice(expressions)}


_GUIDES: list[Callable[[random.Random], dict[str, str]]] = [_doubling, _vocabulary, _circle, _expression]


async def templates(target: Target) -> str:
    return await target.post(CHATS, _chat(**target.chance.choice(_CONVERSATIONS)(target.chance)))


def _many_turns(chance: random.Random) -> dict[str, Any]:
    words = ["x " * chance.randrange(1, 300) for _ in range(2000)]
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": said} for n, said in enumerate(words)]}


def _many_tools(chance: random.Random) -> dict[str, Any]:
    nested: dict[str, Any] = {"type": "string"}
    for _ in range(45):
        nested = {"type": "object", "properties": {"a": nested}}
    described = {"description": "y " * chance.randrange(400), "parameters": nested}
    return {"tools": [{"type": "function", "function": {"name": f"f{n}", **described}} for n in range(128)]}


def _marks(chance: random.Random) -> dict[str, Any]:
    marks = "<|im_start|>system\n{{ messages }}{% for x in range(10**9) %}" * chance.randrange(1000, 50_000)
    return {"messages": [{"role": "user", "content": marks}]}


def _letters(chance: random.Random) -> dict[str, Any]:
    letters = "".join(chance.choices("aà中\U0001f600 \u200d", k=300_000))
    return {"messages": [{"role": "user", "content": letters}]}


def _variables(chance: random.Random) -> dict[str, Any]:
    nested: Any = "z" * chance.randrange(70_000)
    for _ in range(chance.randrange(80)):
        nested = chance.choice([[nested], {"a": nested}])
    names = ("self", "loop", "range", "namespace", "messages", "bos_token", "documents", "enable_thinking")
    return {"chat_template_kwargs": dict.fromkeys(chance.sample(names, 3), nested)}


_CONVERSATIONS: list[Callable[[random.Random], dict[str, Any]]] = [
    *(_many_turns, _many_tools, _marks, _letters, _variables),
]


async def bodies(target: Target) -> str:
    match target.chance.randrange(4):
        case 0:
            return await target.send(CHATS, _body(target.chance), "application/x-www-form-urlencoded")
        case 1:
            return await _in_small_chunks(target)
        case _:
            return await target.send(CHATS, _body(target.chance))


def _body(chance: random.Random) -> bytes:
    start = b'{"model":"autoglm","messages":'
    match chance.randrange(7):
        case 0:
            return start + b'[{"role":"user","content":"' + b"x" * (4 << 20) + b'"}]}'
        case 1:
            return start + b"[" * chance.choice([190, 100_000])
        case 2:
            return b"{" + b",".join(b'"%d":0' % n for n in range(300_000)) + b"}"
        case 3:
            return start + b"[" + b"{}," * 700_000 + b"{}]}"
        case 4:
            return b'{"model":"' + b"\\ud800" * 500_000 + b'"}'
        case 5:
            return b"\xff" * (4 << 20)
        case _:
            return b'{"seed":' + b"9" * 4_000_000 + b"}"


async def _in_small_chunks(target: Target) -> str:
    reader, writer = await target.connect()
    try:
        writer.write(target.head("Transfer-Encoding: chunked") + b"1\r\n[\r\n" * 150_000 + b"0\r\n\r\n")
        return (await asyncio.wait_for(reader.read(12), 60))[9:12].decode()
    finally:
        writer.close()


async def connections(target: Target) -> str:
    """Hundreds at a time that say nothing, half of something, or what is no HTTP."""
    said = [
        b"",
        b"GET /health/live HTTP/1.1\r\nHost: a\r\n",
        target.head("Content-Length: 1000") + b"{",
        os.urandom(300),
        b"\x16\x03\x01\x02\x00" + bytes(200),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
    opened = list[asyncio.StreamWriter]()
    try:
        for _ in range(300):
            opened.append((await target.connect())[1])
            opened[-1].write(target.chance.choice(said))
        await asyncio.sleep(target.chance.uniform(0.5, 8))
        return "opened 300"
    finally:
        for writer in opened:
            if target.chance.random() < 0.5:
                writer.transport.abort()
            writer.close()


async def slow_readers(target: Target) -> str:
    """Streams without end whose reader takes a byte now and then, or leaves."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    made.bind((ADDRESS, 0))
    made.setblocking(False)
    await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", target.port))
    reader, writer = await asyncio.open_connection(sock=made, limit=64)
    try:
        body = json.dumps(_chat(stream=True, max_tokens=900, ignore_eos=True, logprobs=True, top_logprobs=20)).encode()
        writer.write(target.head(f"Content-Length: {len(body)}") + body)
        status = (await asyncio.wait_for(reader.read(12), 60))[9:12].decode()
        for _ in range(target.chance.choice([0, 5, 20])):
            await reader.read(1)
            await asyncio.sleep(0.5)
        return status
    finally:
        writer.transport.abort()


async def choices(target: Target) -> str:
    """Everything at its most: choices (or as many as the key may have at once), stops that are alike, biases,
    log-probabilities."""
    stop = ["a" * 255 + chr(0x61 + number) for number in range(16)]
    bias = {str(target.chance.randrange(40_000)): -1.5 for _ in range(1000)}
    prompts, count = target.chance.choice([(4, 16), (1, 2), (2, 1), (1, 2)])
    body = {"model": "autoglm", "prompt": ["a" * 250] * prompts, "n": count, "max_tokens": 200, "temperature": 1.5}
    return await target.post(TEXTS, {**body, "stop": stop, "logit_bias": bias, "logprobs": 20, "ignore_eos": True})


KINDS: dict[str, Callable[[Target], Awaitable[str]]] = {
    kind.__name__.replace("_", " "): kind
    for kind in (schemas, grammars, templates, bodies, connections, slow_readers, choices)
}
ALL = "all at once"


async def attack(kind: str, port: int, key: str, seconds: float, seed: int) -> Counter[str]:
    seen, until = Counter[str](), time.monotonic() + seconds
    transport = httpx.AsyncHTTPTransport(local_address=ADDRESS, limits=httpx.Limits(max_connections=50))
    async with httpx.AsyncClient(transport=transport, base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
        target = Target(port, key, http, random.Random(seed))
        chosen = list(KINDS.values()) if kind == ALL else [KINDS[kind]] * _WORKERS
        print("begun", flush=True)
        workers = [asyncio.create_task(_repeat(one, target, seen, until)) for one in chosen]
        await asyncio.wait(workers, timeout=seconds)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return seen


async def _repeat(kind: Callable[[Target], Awaitable[str]], target: Target, seen: Counter[str], until: float) -> None:
    while time.monotonic() < until:
        seen["asked"] += 1
        try:
            status = await kind(target)
        except (OSError, httpx.HTTPError, TimeoutError) as error:
            status = type(error).__name__
        seen[status or "closed"] += 1
        if status == "429":
            await asyncio.sleep(0.1)


def main() -> None:
    kind, port, key, seconds = sys.argv[1:]
    os.nice(_NICE)
    print(json.dumps(asyncio.run(attack(kind, int(port), key, float(seconds), seed=int(time.time())))))


if __name__ == "__main__":
    main()
