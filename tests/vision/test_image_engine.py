"""An engine whose model reads images: nobody's answer depends on its company, its chunks, or on what is reused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from autoglm_engine.core import ImageSpan, Request
from autoglm_engine.metrics import IMAGE_ENCODE_TIME, IMAGES, IMAGES_REUSED
from autoglm_engine.runners.base import Limits
from autoglm_engine.settings.model import plain_settings

from tests.support.engine.engine_bench import NUM_CANDIDATES, VOCAB, Bench
from tests.support.engine.fakes import answers, request
from tests.support.engine.images import PLACEHOLDER, FakeVision, Picture, expected_with_images, with_images

CAT, DOG, WIDE = Picture(b"a cat"), Picture(b"a dog"), Picture(b"a panorama", (1, 7))
LENGTH = 64
Part = int | Picture


def bench(num_candidates: int = 0, *, chunk: int = 8, num_slots: int = 4, drafts: int = 0, **settings: object) -> Bench:
    limits = Limits(num_slots, LENGTH, chunk, VOCAB, max_logits_per_span=1 + drafts)
    return Bench(num_candidates, limits, plain_settings(**settings), eos=(), vision=FakeVision())  # type: ignore[arg-type]


def asked(name: str, parts: Sequence[Part], tenant: str = "", **options: object) -> Request:
    made = with_images(request(name, **options), *parts)  # type: ignore[arg-type]
    return Request(
        name, made.prompt_ids, made.sampling, tenant=tenant, images=made.images, image_bytes=made.image_bytes
    )


def expected(parts: Sequence[Part], count: int = 8) -> list[int]:
    files = [part.file for part in parts if isinstance(part, Picture)]
    return expected_with_images(with_images(request(), *parts), files, count, VOCAB)


PROMPTS: list[list[Part]] = [
    [1, CAT, 2],
    [1, DOG, 2],
    [CAT],
    [1, 2, 3, CAT, 4, WIDE, 5, DOG],
    [7, WIDE, WIDE, 8],
    [1, CAT, 2, *range(30)],
]


@pytest.mark.parametrize("num_candidates", NUM_CANDIDATES)
@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8, 64])
@pytest.mark.parametrize("budget", [4, 256])
def test_any_chunks_and_any_company_give_the_answer_of_the_whole(num_candidates: int, chunk: int, budget: int) -> None:
    one = bench(num_candidates, chunk=chunk, token_budget=budget)
    one.run(*(asked(f"r{place}", parts) for place, parts in enumerate(PROMPTS)), request("text", [1, 2, 3]))
    found = answers(one.events)
    assert [found[f"r{place}"].token_ids for place in range(len(PROMPTS))] == [expected(parts) for parts in PROMPTS]
    one.assert_idle()


def test_the_answer_depends_on_the_image_and_on_its_place() -> None:
    same_ids = [expected([1, CAT, 2]), expected([1, DOG, 2]), expected([1, Picture(CAT.file, (3, 2)), 2])]
    assert len({tuple(answer) for answer in same_ids}) == 3


def test_spans_of_text_say_nothing_of_images() -> None:
    one = bench()
    one.run(request("text", [1, 2, 3]), asked("r", [*range(12), CAT, 2]))
    spans = [span for batch in one.runner.batches for span in batch.spans]
    of_text = [span for span in spans if span.slot == 0 or span.start < 8]
    assert of_text and all(span.positions is None and span.features is None for span in of_text)
    assert any(span.positions is not None for span in spans)


def test_answers_hold_no_ids_of_images_and_their_tokens_are_counted() -> None:
    one = bench()
    one.run(asked("r", [1, CAT, 2, DOG], max_tokens=20))
    (answer,) = answers(one.events).values()
    assert min(answer.token_ids) >= 0
    assert (answer.last.usage.prompt_tokens, answer.last.usage.completion_tokens) == (14, 20)


@pytest.mark.parametrize("num_candidates", NUM_CANDIDATES)
def test_penalties_count_the_models_own_id_of_images(num_candidates: int) -> None:
    """As transformers does: the token is a token of the prompt."""
    one = bench(num_candidates)
    bias = ((PLACEHOLDER, 100.0),)
    one.run(
        asked("free", [1, CAT, 2], max_tokens=3, logit_bias=bias),
        asked("penalised", [1, CAT, 2], max_tokens=3, logit_bias=bias, repetition_penalty=1e9, bad_words=((5,),)),
    )
    found = answers(one.events)
    assert found["free"].token_ids == [PLACEHOLDER] * 3
    adjusted = [a for batch in one.runner.batches for span in batch.spans if (a := span.adjustments)]
    assert all(min(told.token_ids, default=0) >= 0 for told in adjusted)
    assert found["penalised"].last.error is None


# ---- reuse


def cached(one: Bench, name: str) -> int:
    return answers(one.events)[name].last.usage.cached_tokens


@pytest.mark.parametrize("num_candidates", NUM_CANDIDATES)
def test_an_image_in_a_slot_is_reused_and_not_encoded(num_candidates: int) -> None:
    one = bench(num_candidates)
    one.run(asked("r0", [1, CAT, 2, 3]))
    one.run(asked("r1", [1, CAT, 2, 4]))
    assert one.vision and one.vision.encoded == [CAT.file]
    assert cached(one, "r1") == 8
    assert answers(one.events)["r1"].token_ids == expected([1, CAT, 2, 4])
    counts = [one.metrics.value(metric) for metric in (IMAGES, IMAGES_REUSED)]
    assert (*counts, one.metrics.histogram(IMAGE_ENCODE_TIME).num_values) == (2, 1, 1)


def test_an_image_that_lies_partly_in_a_slot_is_encoded_for_the_rest() -> None:
    one = bench(num_slots=1)
    tall = Picture(b"tall", (6, 3))
    one.run(asked("r0", [1, tall], max_tokens=1))  # its last token is computed again where the prompt ends with it
    one.run(asked("r1", [1, tall], max_tokens=4))
    assert cached(one, "r1") == 18
    assert answers(one.events)["r1"].token_ids == expected([1, tall], 4)


def test_an_image_is_copied_out_of_a_busy_slot() -> None:
    one = bench()
    long: list[Part] = [*range(16), CAT, 2]
    one.engine.submit(asked("r0", [*long, 3], max_tokens=20))
    one.step(4)
    one.run(asked("r1", [*long, 4]))
    assert one.runner.num_copies == 1 and cached(one, "r1") == 23
    assert answers(one.events)["r1"].token_ids == expected([*long, 4])
    assert answers(one.events)["r0"].token_ids == expected([*long, 3], 20)


@pytest.mark.parametrize(
    "other", [DOG, Picture(CAT.file, (3, 2)), Picture(CAT.file + b"!")], ids=["dog", "grid", "byte"]
)
def test_another_image_of_the_size_is_not_reused(other: Picture) -> None:
    one = bench()
    one.run(asked("r0", [1, 2, CAT, 3]))
    one.run(asked("r1", [1, 2, other, 3]))
    assert cached(one, "r1") == 2
    assert answers(one.events)["r1"].token_ids == expected([1, 2, other, 3])


def test_tenants_share_neither_slots_nor_features() -> None:
    one = bench()
    one.run(asked("r0", [1, CAT, 3], tenant="a"))
    one.run(asked("r1", [1, CAT, 3], tenant="b"))
    assert one.vision and one.vision.encoded == [CAT.file] * 2
    assert cached(one, "r1") == 0
    assert answers(one.events)["r1"].token_ids == expected([1, CAT, 3])


def test_features_that_are_kept_are_those_that_were_computed() -> None:
    one = bench(prefix_reuse=False)
    one.run(asked("r0", [1, CAT, 3]), asked("r1", [4, CAT, 5, DOG]))
    one.run(asked("r2", [9, 9, DOG, CAT]))
    assert one.vision and one.vision.encoded == [CAT.file, DOG.file]
    found = answers(one.events)
    assert found["r1"].token_ids == expected([4, CAT, 5, DOG])
    assert found["r2"].token_ids == expected([9, 9, DOG, CAT])


def test_an_image_that_two_bring_at_once_is_encoded_once() -> None:
    one = bench(prefix_reuse=False)
    one.run(asked("r0", [1, CAT, 3]), asked("r1", [2, CAT, 3]), asked("r2", [1, CAT, CAT]))
    assert one.vision and one.vision.encoded == [CAT.file]
    assert answers(one.events)["r2"].token_ids == expected([1, CAT, CAT])


def test_a_slot_that_was_overwritten_meanwhile_costs_an_encode() -> None:
    """The request asked for nothing, since a slot had its image."""
    one = bench(num_slots=1)
    one.run(asked("r0", [1, CAT, 2]))
    one.engine.submit(request("text", [5] * 30, max_tokens=30))  # takes the slot with the step
    one.step()
    one.engine.submit(asked("r1", [1, CAT, 2]))
    one.drain()
    assert answers(one.events)["r1"].token_ids == expected([1, CAT, 2])
    one.assert_idle()


def test_what_was_asked_for_by_a_slot_that_goes_is_encoded_at_admission() -> None:
    one = bench(num_slots=1, admission="fifo")
    assert one.vision
    one.run(asked("r0", [1, CAT, 2], max_tokens=2))
    one.images.store.pool.forget(next(iter(one.images.store.pool._images.values())))  # type: ignore[union-attr]
    one.engine.submit(request("text", [5] * 30, max_tokens=30))
    one.engine.submit(asked("r1", [1, CAT, 2]))  # looked up while the slot still has it
    one.drain()
    assert one.vision.encoded == [CAT.file] * 2
    assert answers(one.events)["r1"].token_ids == expected([1, CAT, 2])
    one.assert_idle()


# ---- drafts


@pytest.mark.parametrize("chunk", [5, 8])
def test_drafts_change_no_answer(chunk: int) -> None:
    found = []
    for speculation in ("off", "on"):
        one = bench(chunk=chunk, drafts=4, speculation=speculation)
        one.runner.model = lambda seen, vocab_size: np.eye(vocab_size, dtype=np.float32)[
            int(seen[:10].sum() + len(seen)) % 3
        ]
        one.run(*(asked(f"r{place}", parts, max_tokens=20) for place, parts in enumerate(PROMPTS)))
        found.append({name: answer.token_ids for name, answer in answers(one.events).items()})
        drafted = [span.num_drafts for batch in one.runner.batches for span in batch.spans]
        assert (max(drafted) > 0) == (speculation == "on")
    assert found[0] == found[1]


def test_no_token_of_an_image_is_drafted() -> None:
    """The prompt says 1 2 and then an image; the answer says 1 2 and then what it likes."""
    one = bench(drafts=4, speculation="on")
    one.runner.model = lambda seen, vocab_size: np.eye(vocab_size, dtype=np.float32)[1 + len(seen) % 2]
    one.run(asked("r", [2, 1, 2, CAT, 2, 1], max_tokens=20))
    spans = [span for batch in one.runner.batches for span in batch.spans]
    drafts = [span.token_ids[-span.num_drafts :] for span in spans if span.num_drafts]
    assert drafts and all((ids >= 0).all() for ids in drafts)


def test_images_that_touch_have_tokens_of_their_own() -> None:
    one = bench()
    made = asked("r", [1, CAT, CAT, DOG])
    one.engine.submit(made)
    one.step(2)
    (running,) = one.engine._scheduler.running
    ids = running.tokens[: running.num_tokens].tolist()
    assert ids[1:7] == ids[7:13] != ids[13:19] and len(set(ids[1:19])) == 12
    assert made.images[1] == ImageSpan(7, CAT.grid, CAT.digest)
    assert (made.prompt_ids[1:] == PLACEHOLDER).all(), "the request's own ids are changed"
