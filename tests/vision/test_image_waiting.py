"""Requests that wait for their images: they hold no slot, may leave at any time, and fail alone."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from autoglm_engine.core import Event, Features, FinishReason
from autoglm_engine.engine.engine import Engine
from autoglm_engine.engine.images.feature_pool import FeaturePool
from autoglm_engine.engine.images.image_bytes import ImageBudget
from autoglm_engine.engine.loop import EngineLoop
from autoglm_engine.errors import DeviceError, InvalidRequest, QueueFull
from autoglm_engine.metrics import IMAGE_FEATURE_USAGE
from autoglm_engine.runners.base import Limits
from autoglm_engine.settings.model import plain_settings

from tests.support.engine.engine_bench import VOCAB, Bench
from tests.support.engine.fakes import answers, request
from tests.support.engine.images import BROKEN, HIDDEN, FakeVision, Picture
from tests.vision.test_image_engine import CAT, DOG, asked, bench, expected


def held_up(**settings: object) -> Bench:
    """The first image is being encoded until `free`."""
    one = bench(**settings)  # type: ignore[arg-type]
    assert one.vision
    one.vision.free.clear()
    return one


def vision_of(one: Bench) -> FakeVision:
    assert one.vision
    return one.vision


def pool_rows(one: Bench) -> int:
    assert one.images
    return one.images.store.pool.num_rows


def test_who_waits_holds_no_slot_and_others_go_on() -> None:
    one = held_up(num_slots=1)
    one.engine.submit(asked("image", [1, CAT, 2]))
    one.step()
    one.engine.submit(request("text", [1, 2, 3], max_tokens=5))
    one.step(7)
    assert answers(one.events)["text"].last.finish_reason is FinishReason.LENGTH
    assert one.engine.stats.waiting == 1 and one.engine.stats.slots_busy == 0
    vision_of(one).free.set()
    one.drain()
    assert answers(one.events)["image"].token_ids == expected([1, CAT, 2])
    one.assert_idle()


@pytest.mark.parametrize("has_begun", [True, False])
@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_who_waits_may_leave_at_once(how: str, has_begun: bool) -> None:
    one = held_up()
    if not has_begun:
        one.engine.submit(asked("first", [1, DOG, 2]))
    deadline = one.clock.now + 1 if how == "deadline" else None
    one.engine.submit(replace(asked("r", [1, CAT, 2]), deadline=deadline))
    one.step()
    assert vision_of(one).began.wait(10)
    one.clock.now += 2
    if how == "cancel":
        assert one.engine.cancel(["r"]) == 1
    one.step()
    reason = answers(one.events)["r"].last.finish_reason
    assert reason is (FinishReason.CANCELLED if how == "cancel" else FinishReason.DEADLINE)
    vision_of(one).free.set()
    one.drain()
    one.assert_idle()
    assert (CAT.file in vision_of(one).encoded) == has_begun, "an image that nobody wants is encoded"


def test_what_is_half_made_when_its_request_leaves_is_given_up_and_not_kept() -> None:
    """Whatever the tower makes of it then is nobody's, and not that of who asks for the image again."""
    one = held_up()
    one.engine.submit(asked("r0", [1, CAT, 2]))
    one.step()
    assert vision_of(one).began.wait(10) and not vision_of(one).given_up
    one.engine.cancel(["r0"])
    one.step()
    assert vision_of(one).given_up == [1] and one.images and one.images.store.pool.usage == 0
    one.engine.submit(asked("dog", [1, DOG, 2]))
    one.engine.submit(asked("r1", [1, CAT, 2]))
    one.step()
    vision_of(one).free.set()
    one.drain()
    assert vision_of(one).encoded == [CAT.file, DOG.file, CAT.file] and vision_of(one).given_up == [1]
    assert answers(one.events)["r1"].token_ids == expected([1, CAT, 2])
    assert answers(one.events)["dog"].token_ids == expected([1, DOG, 2])
    one.assert_idle()


def test_one_of_two_who_want_it_leaves_and_nothing_is_given_up() -> None:
    one = held_up()
    one.engine.submit(asked("r0", [1, CAT, 2]))
    one.step()
    assert vision_of(one).began.wait(10)
    one.engine.submit(asked("r1", [3, CAT, 2]))
    one.step()
    one.engine.cancel(["r0"])
    one.step()
    vision_of(one).free.set()
    one.drain()
    assert vision_of(one).encoded == [CAT.file] and not vision_of(one).given_up
    assert answers(one.events)["r1"].token_ids == expected([3, CAT, 2])


def test_what_an_encode_raises_that_was_given_up_is_nobodys() -> None:
    one = held_up()
    bad = Picture(BROKEN)
    one.engine.submit(asked("r0", [1, bad, 2]))
    one.step()
    assert vision_of(one).began.wait(10)
    one.engine.cancel(["r0"])
    one.step()
    vision_of(one).free.set()
    one.run(asked("cat", [1, CAT, 2]))
    assert answers(one.events)["cat"].token_ids == expected([1, CAT, 2])
    assert answers(one.events)["r0"].last.error is None
    one.assert_idle()


def lined_up(*priorities: int, **settings: object) -> tuple[Bench, list[bytes]]:
    """One image is being encoded, and those of such priorities came behind it, in this order, each in a step of its
    own; their files."""
    one = held_up(prefix_reuse=False, **settings)
    one.engine.submit(replace(asked("first", [1, DOG]), priority=9))
    one.step()
    assert vision_of(one).began.wait(10)
    pictures = [Picture(bytes([65 + place])) for place in range(len(priorities))]
    for place, (picture, priority) in enumerate(zip(pictures, priorities, strict=True)):
        one.engine.submit(replace(asked(f"r{place}", [1, picture]), priority=priority))
        one.step()
    return one, [picture.file for picture in pictures]


def test_an_image_of_a_better_priority_that_comes_later_is_encoded_first() -> None:
    one, files = lined_up(5, 3, 5, 1, 3)
    vision_of(one).free.set()
    one.drain()
    assert vision_of(one).encoded[1:] == [files[place] for place in (3, 1, 4, 0, 2)]


def test_no_priority_starves_in_the_line_of_the_encoder() -> None:
    one, files = lined_up(5, 1, 1, 1, 1, 1, admission_max_passed=3)
    vision_of(one).free.set()
    one.drain()
    assert vision_of(one).encoded[1:] == [files[place] for place in (1, 2, 3, 0, 4, 5)]


def test_an_image_that_somebody_of_a_better_priority_wants_goes_with_that_one() -> None:
    one, files = lined_up(5, 3)
    one.engine.submit(replace(asked("better", [7, Picture(files[0])]), priority=1))
    one.step()
    vision_of(one).free.set()
    one.drain()
    assert vision_of(one).encoded[1:] == files
    assert answers(one.events)["better"].token_ids == expected([7, Picture(files[0])])


def test_one_leaves_and_another_still_wants_the_image() -> None:
    one = held_up()
    one.engine.submit(asked("first", [1, DOG, 2]))
    one.engine.submit(asked("r0", [1, CAT, 2]))
    one.engine.submit(asked("r1", [3, CAT, 2]))
    one.step()
    one.engine.cancel(["r0"])
    one.step()
    vision_of(one).free.set()
    one.drain()
    assert vision_of(one).encoded == [DOG.file, CAT.file]
    assert answers(one.events)["r1"].token_ids == expected([3, CAT, 2])
    one.assert_idle()


def test_an_image_that_cannot_be_encoded_ends_its_request_alone() -> None:
    one = bench(prefix_reuse=False)
    bad = Picture(BROKEN)
    one.run(asked("good", [1, CAT, 2]), asked("bad", [1, CAT, bad]), asked("text", [4]), asked("dog", [1, DOG]))
    found = answers(one.events)
    assert (found["bad"].last.error, found["bad"].last.error_code) == ("the image cannot be decoded", "INTERNAL")
    for name, parts in {"good": [1, CAT, 2], "text": [4], "dog": [1, DOG]}.items():
        if name != "text":
            assert found[name].token_ids == expected(parts)  # type: ignore[arg-type]
        assert found[name].last.error is None
    one.assert_idle()
    one.run(asked("again", [1, bad]))
    assert vision_of(one).encoded.count(BROKEN) == 2, "a failure is kept"
    one.assert_idle()


@pytest.mark.parametrize("error", [ValueError("secret"), DeviceError("gone"), SystemExit(3), KeyboardInterrupt()])
def test_whatever_an_encode_raises_the_next_one_is_encoded(error: BaseException) -> None:
    one = bench()
    encode = vision_of(one).encode

    def raises(file: bytes, grid: tuple[int, int], number: int) -> Features:
        if file == CAT.file:
            raise error
        return encode(file, grid, number)

    assert one.images
    one.images.store.encoder._vision.encode = raises
    one.run(asked("cat", [1, CAT, 2]), asked("dog", [1, DOG, 2]))
    found = answers(one.events)
    assert found["cat"].last.error and "secret" not in found["cat"].last.error
    assert found["dog"].token_ids == expected([1, DOG, 2])
    one.assert_idle()


def test_features_of_another_shape_end_the_request() -> None:
    one = bench()
    assert one.images
    one.images.store.encoder._vision.encode = lambda file, grid, number: np.zeros((6, HIDDEN + 1), np.float32)
    one.run(asked("r", [1, CAT, 2]))
    assert answers(one.events)["r"].last.error == (
        "the vision model gave features of shape (6, 5), and the image has (6, 4)"
    )
    one.assert_idle()


def test_one_image_is_encoded_at_a_time_and_the_better_priority_first() -> None:
    one = held_up(prefix_reuse=False)
    pictures = [Picture(bytes([65 + place])) for place in range(6)]
    for place, picture in enumerate(pictures):
        one.engine.submit(replace(asked(f"r{place}", [1, picture, 2]), priority=9 - place))
    one.step()
    vision_of(one).free.set()
    one.drain()
    assert vision_of(one).max_at_once == 1
    assert vision_of(one).encoded == [picture.file for picture in reversed(pictures)]


def test_no_priority_starves_where_rows_are_few() -> None:
    """As with slots: who was passed over often enough gets the next rows."""
    one = bench(prefix_reuse=False, admission_max_passed=3)
    assert one.images
    one.images.store.pool = one.images.store.encoder._pool = FeaturePool(6, HIDDEN)
    late = Picture(b"late")
    one.engine.submit(replace(asked("late", [1, late]), priority=5))
    for place in range(12):
        one.engine.submit(replace(asked(f"r{place}", [1, Picture(bytes([place]))]), priority=1))
    one.drain()
    assert vision_of(one).encoded.index(late.file) == 3
    one.assert_idle()


def test_rows_go_to_those_who_came_first() -> None:
    """A large request is not passed by small ones for ever."""
    one = held_up(image_feature_bytes=1 << 16, prefix_reuse=False)
    assert one.images
    one.images.store.pool = FeaturePool(12, HIDDEN)
    one.images.store.encoder._pool = one.images.store.pool
    small = [Picture(bytes([place]), (1, 6)) for place in range(4)]
    one.engine.submit(asked("r0", [1, small[0]]))
    one.engine.submit(asked("large", [1, small[1], 2, small[2]]))
    one.engine.submit(asked("r1", [1, small[3]]))
    one.step()
    vision_of(one).free.set()
    one.drain()
    assert vision_of(one).encoded == [picture.file for picture in small]
    assert answers(one.events)["large"].token_ids == expected([1, small[1], 2, small[2]])
    one.assert_idle()


def test_who_leaves_while_its_prompt_is_computed_lets_go_of_its_rows() -> None:
    one = bench(chunk=2, token_budget=4)
    one.engine.submit(asked("r", [1, CAT, 2, DOG]))
    one.step(3)
    assert one.engine.stats.running == 1 and one.images and one.images.store.pool.usage > 0
    one.engine.cancel(["r"])
    one.step()
    assert one.images.store.pool.usage == 0
    one.assert_idle()


def test_an_encoded_image_is_news() -> None:
    one = held_up()
    one.engine.submit(asked("r", [1, CAT, 2]))
    one.step()
    assert one.engine.rest_seconds
    vision_of(one).free.set()
    one.encode()
    assert one.engine.rest_seconds == 0


def test_shutting_down_ends_those_who_wait() -> None:
    one = held_up()
    one.engine.submit(asked("encoding", [1, CAT, 2]))
    one.engine.submit(asked("queued", [1, DOG, 2]))
    one.step()
    assert vision_of(one).began.wait(10)
    one.engine.submit(asked("new", [1, DOG, 2]))
    one.events += one.engine.shut_down()
    assert vision_of(one).given_up == [1]
    assert {answers(one.events)[name].last.error_code for name in ("encoding", "queued", "new")} == {"UNAVAILABLE"}
    vision_of(one).free.set()
    one.encode()
    assert vision_of(one).encoded == [CAT.file]
    one.assert_idle()


def test_a_loop_rests_until_an_image_is_encoded() -> None:
    """The encode wakes it; nothing else does."""
    vision, done = FakeVision(), threading.Event()
    given = vision.given()
    one = Bench(0, eos=(), vision=vision)
    engine = Engine(one.runner, one.text, (), plain_settings(), vision=given)
    found: list[Event] = []

    def sink(event: Event) -> None:
        found.append(event)
        done.set()

    loop = EngineLoop(engine, sink)
    given.wake = loop.wake
    loop.start()
    loop.submit(replace(asked("r", [1, CAT, 2]), stream=False))
    assert done.wait(30) and loop.close(10)
    assert [*found[0].token_ids] == expected([1, CAT, 2])


# ---- room


def small(num_rows: int, **settings: object) -> Bench:
    return Bench(
        0,
        Limits(2, 64, 8, VOCAB),
        plain_settings(image_feature_bytes=1 << 16, prefix_reuse=False, **settings),  # type: ignore[arg-type]
        eos=(),
        vision=FakeVision(),
    )


def test_the_memory_for_features_is_bounded_by_the_setting_and_by_what_slots_hold() -> None:
    assert pool_rows(bench(image_feature_bytes=1 << 16)) == min((1 << 16) // (HIDDEN * 4), 4 * 4 * 64)
    assert pool_rows(bench(image_feature_bytes=1 << 40)) == 4 * 4 * 64


def test_all_are_served_by_memory_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoglm_engine.engine.image_requests._MAX_PROMPTS", 14 / (2 * 64))
    monkeypatch.setattr("autoglm_engine.engine.image_requests.min", lambda *rows: 14, raising=False)
    one = small(14)
    assert pool_rows(one) == 14
    pictures = [Picture(bytes([place]), (2, 3)) for place in range(9)]
    prompts = [[place, pictures[place], 7, pictures[(place + 1) % 9]] for place in range(9)]
    one.run(*(asked(f"r{place}", parts) for place, parts in enumerate(prompts)))  # type: ignore[arg-type]
    found = answers(one.events)
    assert [found[f"r{place}"].token_ids for place in range(9)] == [expected(parts) for parts in prompts]  # type: ignore[arg-type]
    one.assert_idle()
    assert one.metrics.value(IMAGE_FEATURE_USAGE) == 0


def test_images_that_never_fit_are_refused_at_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoglm_engine.engine.image_requests.min", lambda *rows: 14, raising=False)
    one = small(14)
    sentence = "the images have 18 tokens, and this server has memory for the features of 14; see the setting"
    with pytest.raises(InvalidRequest, match=sentence):
        one.engine.submit(asked("r", [1, CAT, DOG, Picture(b"third")]))
    one.run(asked("twice", [1, CAT, DOG, CAT]))
    assert answers(one.events)["twice"].token_ids == expected([1, CAT, DOG, CAT])


def test_a_model_of_text_refuses_images_and_files_must_come_along() -> None:
    with pytest.raises(InvalidRequest, match="the prompt has 1 images, and the model reads none"):
        Bench(0).engine.submit(asked("r", [1, CAT, 2]))
    with pytest.raises(InvalidRequest, match="the prompt has 1 images, and their files did not come with it"):
        bench().engine.submit(replace(asked("r", [1, CAT, 2]), image_bytes=None))


# ---- bytes


def test_files_are_held_within_a_bound_until_they_are_released() -> None:
    budget = ImageBudget(10)
    first = budget.hold([b"1234", b"56"])
    assert (first.file(1), budget.num_bytes) == (b"56", 6)
    with pytest.raises(QueueFull, match="6 bytes of images wait already, and the limit is 10; try again later"):
        budget.hold([b"12345"])
    with pytest.raises(InvalidRequest, match="the images have 11 bytes; at most 10 are allowed"):
        budget.hold([b"12345678901"])
    first.release()
    first.release()
    second = budget.hold([b"1234567890"])
    assert budget.num_bytes == 10
    del second
    assert budget.num_bytes == 0, "files are counted that nobody holds"


@pytest.mark.parametrize("end", ["admitted", "cancelled", "failed", "shut down"])
def test_a_request_lets_go_of_its_files(end: str) -> None:
    one = held_up()
    budget = ImageBudget(1000)
    picture = Picture(BROKEN) if end == "failed" else CAT
    made = replace(asked("r", [1, picture, 2]), image_bytes=budget.hold([picture.file]))
    one.engine.submit(made)
    one.step()
    assert budget.num_bytes == len(picture.file)
    if end == "cancelled":
        one.engine.cancel(["r"])
    if end == "shut down":
        one.engine.shut_down()
    if end in ("admitted", "failed"):
        vision_of(one).free.set()
    one.step()
    assert budget.num_bytes == 0
    vision_of(one).free.set()


def test_the_system_may_refuse_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    one = bench()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        one.run(asked("r0", [1, CAT, 2]))
    last = answers(one.events)["r0"].last
    assert (last.error_code, last.error) == (
        "UNAVAILABLE",
        "the system refuses a thread to encode images; try again later",
    )
    one.run(asked("r1", [1, CAT, 2]))
    assert answers(one.events)["r1"].token_ids == expected([1, CAT, 2])
    one.assert_idle()
