"""Whole answers of requests with images: nobody is given one to another image."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass, field, replace

import pytest
from autoglm_engine.cache.fingerprint import _options, context_fingerprint, fingerprint
from autoglm_engine.cache.semantic.cache import SemanticCache
from autoglm_engine.cache.semantic.entries import SemanticEntries
from autoglm_engine.cache.semantic.vector_index import VectorIndex
from autoglm_engine.core import CacheHit, ImageSpan, Request, SemanticQuery
from autoglm_engine.engine.images.image_bytes import ImageBudget
from autoglm_engine.settings.model import plain_settings

from tests.cache.test_sharing import shared_bench, submit
from tests.support.engine.engine_bench import Bench
from tests.support.engine.fakes import FakeClock, answers
from tests.support.engine.images import FakeVision, Picture
from tests.vision.test_image_engine import CAT, DOG, Part, asked, expected


def test_the_key_of_a_request_of_text_is_what_it_was() -> None:
    """Servers with and without images share what they keep."""
    made = asked("r", [1, 2, 3], tenant="t", max_tokens=4, stop=("x",))
    before = json.dumps(["digest", "t", _options(made.sampling)]).encode() + b"\0" + made.prompt_ids.tobytes()
    assert fingerprint("digest", made) == hashlib.blake2b(before, digest_size=32).digest()


def changed(image: ImageSpan) -> list[ImageSpan]:
    return [
        replace(image, digest=bytes([image.digest[0] ^ 1]) + image.digest[1:]),
        replace(image, digest=image.digest[:-1] + bytes([image.digest[-1] ^ 128])),
        replace(image, grid=(3, 2)),
        replace(image, grid=(1, 6)),
        replace(image, offset=image.offset - 1),
    ]


def test_the_key_is_of_every_image_its_grid_and_its_place() -> None:
    made = asked("r", [1, CAT, 2, DOG])
    first, second = made.images
    others = [
        *((other, second) for other in changed(first)),
        *((first, other) for other in changed(second)),
        (second, first),
        (first,),
        (second,),
        (),
        (first, first),
    ]
    keys = {fingerprint("digest", replace(made, images=images)) for images in (made.images, *others)}
    assert len(keys) == 1 + len(others)
    assert fingerprint("digest", asked("s", [1, CAT, 2, DOG])) in keys


def asking(name: str, parts: list[Part], tenant: str = "") -> Request:
    return asked(name, parts, tenant, ignore_eos=True)


def cached_bench(**options: object) -> Bench:
    return shared_bench(vision=FakeVision(), **options)  # type: ignore[arg-type]


def hits(bench: Bench) -> dict[str, CacheHit]:
    return {name: answer.last.cache_hit for name, answer in answers(bench.events).items()}


def test_equal_requests_share_an_answer_and_one_byte_is_another_request() -> None:
    bench = cached_bench()
    near = Picture(CAT.file + b"!")
    submit(bench, asking("first", [1, CAT, 2]), asking("joins", [1, CAT, 2]), asking("near", [1, near, 2]))
    bench.drain()
    submit(bench, asking("kept", [1, CAT, 2]), asking("tenant", [1, CAT, 2], tenant="other"))
    bench.drain()
    none = CacheHit.NONE
    assert hits(bench) == {
        "first": none,
        "joins": CacheHit.COALESCED,
        "near": none,
        "kept": CacheHit.EXACT,
        "tenant": none,
    }
    found = answers(bench.events)
    assert {tuple(found[name].token_ids) for name in ("first", "joins", "kept", "tenant")} == {
        tuple(expected([1, CAT, 2]))
    }
    assert found["near"].token_ids == expected([1, near, 2])
    assert found["kept"].last.usage.prompt_tokens == 8


def test_who_shares_holds_no_files() -> None:
    bench, budget = cached_bench(), ImageBudget(10_000)
    assert bench.vision
    bench.vision.free.clear()
    for place in range(5):
        submit(bench, replace(asking(f"r{place}", [1, CAT, 2]), image_bytes=budget.hold([CAT.file])))
    bench.step()
    assert budget.num_bytes == len(CAT.file)
    bench.vision.free.set()
    bench.drain()
    submit(bench, replace(asking("kept", [1, CAT, 2]), image_bytes=budget.hold([CAT.file])))
    assert hits(bench)["kept"] is CacheHit.EXACT and budget.num_bytes == 0


def test_who_began_it_leaves_and_who_joined_has_the_answer() -> None:
    bench = cached_bench()
    assert bench.vision
    bench.vision.free.clear()
    submit(bench, asking("begins", [1, CAT, 2]), asking("joins", [1, CAT, 2]))
    bench.step()
    bench.engine.cancel(["begins"])
    bench.step()
    bench.vision.free.set()
    bench.drain()
    assert answers(bench.events)["joins"].token_ids == expected([1, CAT, 2])


def test_images_are_not_compared_by_meaning() -> None:
    settings = plain_settings(cache_mode="exact", semantic_cache="on")
    entries = SemanticEntries(VectorIndex(4), 10, 10.0, FakeClock())
    cache = SemanticCache(lambda text: pytest.fail("embedded"), entries, "digest", settings)
    question = SemanticQuery("what is it", "context")
    made = asked("r", [1, CAT, 2])
    assert cache.wants(replace(made, question=question, images=()))
    for semantic in (None, True):
        assert not cache.wants(replace(made, question=question, semantic=semantic))
    with pytest.raises(AssertionError):
        context_fingerprint("digest", replace(made, question=question))
    cache.close()


# ---- many pairs


@dataclass
class Pairs:
    """Pairs of requests with images of one size and equal text, all behind one engine and its caches."""

    bench: Bench
    draw: random.Random = field(default_factory=lambda: random.Random(7))
    asked: dict[str, list[Part]] = field(default_factory=dict)

    def submit_pair(self) -> None:
        draw = self.draw
        grid = draw.choice([(1, 1), (2, 3), (3, 2), (1, 6), (4, 4)])
        file = draw.randbytes(24)
        place = draw.randrange(24)
        other = file[:place] + bytes([file[place] ^ 1 << draw.randrange(8)]) + file[place + 1 :]
        before, after = ([draw.randrange(3) for _ in range(draw.randrange(9))] for _ in range(2))
        second = Picture(draw.choice([other, draw.randbytes(24)]), grid)
        for picture in draw.sample([Picture(file, grid), second], 2):
            self._submit([*before, picture, *after, 1], draw.choice(["", "a"]))

    def _submit(self, parts: list[Part], tenant: str) -> None:
        name = f"r{len(self.asked)}"
        self.asked[name] = parts
        submit(self.bench, asked(name, parts, tenant, max_tokens=3, ignore_eos=True))

    def check(self) -> None:
        found = answers(self.bench.events)
        assert found.keys() == self.asked.keys()
        for name, parts in self.asked.items():
            assert found[name].token_ids == expected(parts, 3), f"{name} has another's answer"
            assert found[name].last.cache_hit is CacheHit.NONE


@pytest.mark.parametrize("num_pairs", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_image_has_another_ones_answer(num_pairs: int) -> None:
    pairs = Pairs(cached_bench(num_slots=6, max_queue=10_000, cache_bytes=1 << 24))
    for number in range(num_pairs):
        pairs.submit_pair()
        if number % 50 == 49:
            pairs.bench.drain()
    pairs.bench.drain()
    pairs.check()
    pairs.bench.assert_idle()


def test_the_pairs_would_tell() -> None:
    """A key without digests gives one of a pair the other's answer."""
    pairs = Pairs(cached_bench(num_slots=6))

    def submit_blind(request: Request) -> object:
        digest = bytes(32)
        return blind(replace(request, images=tuple(replace(image, digest=digest) for image in request.images)))

    blind = pairs.bench.engine.submit
    pairs.bench.engine.submit = submit_blind  # type: ignore[method-assign, assignment]
    for _ in range(20):
        pairs.submit_pair()
    pairs.bench.drain()
    with pytest.raises(AssertionError, match="has another's answer"):
        pairs.check()
