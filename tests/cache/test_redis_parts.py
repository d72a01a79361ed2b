"""What the Redis tier is made of, without Redis: addresses, entries, epochs and the queue of writes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from autoglm_cli import app
from autoglm_engine.cache.redis.entry import Damaged, RedisEntry, age_of, pack_entry, unpack_entry
from autoglm_engine.cache.redis.epochs import CacheEpochs, Sight, new_epoch
from autoglm_engine.cache.redis.write_queue import Write, WriteQueue
from autoglm_engine.core import Event, FinishReason, Stages, Usage
from autoglm_engine.errors import InvalidRequest
from autoglm_engine.settings.file import as_toml, parse_text, read_settings
from autoglm_engine.settings.model import ServingSettings
from autoglm_engine.settings.redis_url import check_redis_url, shown_redis_url
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.conftest import MODEL_REPOSITORY

# ---- the address

SECRET = "s3cret"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("", ""),
        ("redis://cache", "redis://cache"),
        ("redis://cache:7000/3", "redis://cache:7000/3"),
        (f"redis://:{SECRET}@cache", "redis://:***@cache"),
        (f"rediss://bob:{SECRET}%40@cache:1/0?ssl_cert_reqs=none", "rediss://bob:***@cache:1/0"),
        ("rediss://[::1]:1/?ssl_ca_certs=/ca.pem&ssl_check_hostname=false", "rediss://[::1]:1/"),
        (f"unix://:{SECRET}@/run/redis.sock?db=2", "unix://:***@/run/redis.sock"),
    ],
)
def test_addresses_are_shown_without_their_password(url: str, shown: str) -> None:
    check_redis_url(url)
    assert shown_redis_url(url) == shown
    assert SECRET not in repr(ServingSettings(redis_url=url))


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (f"http://bob:{SECRET}@cache", "none of the schemes"),
        (f"bob:{SECRET}@cache", "none of the schemes"),
        (f"redis:{SECRET}@cache", "none of the schemes"),
        ("redis://", "names no host"),
        (f"redis://:{SECRET}@", "names no host"),
        ("redis://cache:99999", "cannot be read"),
        (f"redis://:{SECRET}#1@cache", "cannot be read"),
        (f"redis://:{SECRET}/1@cache", "cannot be read"),
        (f"redis://:1?{SECRET}@cache", "names no host|is not among|cannot be read"),
        ("redis://cache/zero", "database is no number"),
        ("redis://cache?db=x", "database is no number"),
        (f"redis://cache?password={SECRET}", "'password' is not among the options db"),
        ("redis://cache?ssl_cert_reqs=none", "'ssl_cert_reqs' is not among"),
        ("rediss://cache?ssl_cert_reqs=never", "none, optional or required"),
        ("unix://run/redis.sock", "names no socket"),
        ("redis://bob:***@cache", "hidden when it was printed"),
        (f"redis://:{SECRET} @cache", "none of the schemes"),
        (f"redis://user:{SECRET}][1?@cache", "none of the schemes"),
    ],
)
def test_what_is_no_address_is_refused_without_showing_what_may_be_a_password(url: str, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem) as raised:
        check_redis_url(url)
    assert str(raised.value).startswith("the setting redis_url is '") and SECRET not in str(raised.value)


@given(st.text("ab:/?#@%[]. 1", max_size=12), st.sampled_from(["redis://", "rediss://", "unix://", "redis:", ""]))
def test_no_secret_is_shown_wherever_it_stands(mess: str, scheme: str) -> None:
    url = f"{scheme}user:{SECRET}{mess}@cache"
    assert SECRET not in shown_redis_url(url)
    try:
        check_redis_url(url)
    except InvalidRequest as error:
        assert SECRET not in str(error)


def test_the_printed_settings_hide_the_password_and_are_refused_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "serving.toml"
    path.write_text(f'redis_url = "redis://:{SECRET}@cache:1"')
    options = ["serve", "--repository", str(MODEL_REPOSITORY), "--print-config", "--config", str(path)]
    shown = CliRunner().invoke(app, options, env={"COLUMNS": "200", "TERM": "dumb"})
    assert shown.exit_code == 0 and SECRET not in shown.output and 'redis_url = "redis://:***@cache:1"' in shown.stdout
    path.write_text(as_toml(ServingSettings(redis_url=f"redis://:{SECRET}@cache:1")))
    with pytest.raises(InvalidRequest, match="hidden when it was printed"):
        read_settings(path)
    path.write_text(f'redis_url = ["redis://:{SECRET}@cache:1"]')
    with pytest.raises(InvalidRequest, match="redis_url is of another type; it must be a string"):
        read_settings(path)
    assert parse_text("redis_url", "redis://cache") == "redis://cache"


@pytest.mark.parametrize("prefix", ["", "a b", "a*", "x" * 65, "ü"])
def test_a_prefix_that_is_none_is_refused(prefix: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(f"the setting redis_prefix is {prefix!r:.80}")):
        ServingSettings(redis_prefix=prefix)


# ---- entries

ANSWER = Event("", (1, 2), Usage(1, 2, 0), Stages(), FinishReason.LENGTH, is_first=True)
ENTRY = RedisEntry(ANSWER, 300_000, b"g" * 16)
KEY = b"k" * 32


def test_an_entry_comes_back_and_names_nobody() -> None:
    value = pack_entry(KEY, replace(ENTRY, answer=replace(ANSWER, request_id="who", stages=Stages(1, 1, 1, 1))))
    assert unpack_entry(KEY, value) == ENTRY
    assert (age_of(ENTRY, 300_000), age_of(ENTRY, 0), age_of(ENTRY, 298_500)) == (0, 300, 1.5)
    for left_ms in (-1, -2, 300_001):
        with pytest.raises(Damaged):
            age_of(ENTRY, left_ms)


@given(st.data())
def test_an_entry_with_any_change_or_under_another_key_is_none(data: st.DataObject) -> None:
    value = bytearray(pack_entry(KEY, ENTRY))
    match data.draw(st.sampled_from(["change", "cut", "longer", "key"])):
        case "change":
            value[data.draw(st.integers(0, len(value) - 1))] ^= data.draw(st.integers(1, 255))
        case "cut":
            del value[data.draw(st.integers(0, len(value) - 1)) :]
        case "longer":
            value += data.draw(st.binary(min_size=1, max_size=3))
        case "key":
            with pytest.raises(Damaged):
                unpack_entry(
                    data.draw(st.binary(min_size=32, max_size=32).filter(lambda key: key != KEY)), bytes(value)
                )
            return
    with pytest.raises(Damaged):
        unpack_entry(KEY, bytes(value))


@given(st.binary(max_size=100))
def test_foreign_values_are_no_entries(value: bytes) -> None:
    with pytest.raises(Damaged):
        unpack_entry(KEY, value)


@pytest.mark.parametrize(
    "answer",
    [replace(ANSWER, finish_reason=None), replace(ANSWER, finish_reason=None, error="no", error_code="INTERNAL")],
)
def test_only_whole_answers_are_taken_from_an_entry(answer: Event) -> None:
    with pytest.raises(Damaged, match="no whole answer"):
        unpack_entry(KEY, pack_entry(KEY, replace(ENTRY, answer=answer)))


# ---- epochs


def test_a_flush_counts_at_once_and_is_unwritten_until_redis_knows() -> None:
    epochs = CacheEpochs()
    first = new_epoch()
    assert (epochs.look(None), epochs.look(first), epochs.counts(None)) == (
        Sight.MISSING,
        Sight.NEW,
        False,
    )
    epochs.accept(first)
    assert epochs.counts(first) and epochs.look(first) is Sight.SAME
    epochs.flush()
    second = epochs.unwritten
    assert second == epochs.current != first and second is not None
    assert not epochs.counts(first) and not epochs.counts(second)
    epochs.accept(new_epoch())  # too late: ours is the newer one
    epochs.flush()
    epochs.written(second)  # not the last one
    assert epochs.unwritten == epochs.current != second
    assert epochs.current is not None
    epochs.written(epochs.current)
    assert epochs.counts(epochs.current) and epochs.unwritten is None
    assert [epochs.look(token) for token in (first, second, b"", b"7")] == [Sight.RETIRED] * 4


@given(st.lists(st.sampled_from(["flush", "write", "theirs", "old"]), max_size=30))
def test_a_generation_that_was_replaced_never_counts_again(steps: list[str]) -> None:
    epochs, seen = CacheEpochs(), list[bytes]()
    for step in steps:
        before = epochs.current
        if step == "flush":
            epochs.flush()
        if step == "write" and (token := epochs.unwritten):
            epochs.written(token)
        if step == "theirs" and epochs.unwritten is None:
            epochs.accept(new_epoch())
        if step == "old" and seen and epochs.unwritten is None:
            assert epochs.look(seen[0]) is Sight.RETIRED
        if before is not None and before != epochs.current:
            seen.append(before)
        assert not any(epochs.counts(token) for token in seen)


# ---- writes


def write(num_tokens: int, key: bytes = KEY) -> Write:
    return Write(key, replace(ANSWER, token_ids=tuple(range(num_tokens))), b"g" * 16, 0.0)


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 3), st.sampled_from("ab"), st.sampled_from("abc")), max_size=40
    )
)
def test_the_queue_is_bounded_and_in_order(steps: list[tuple[int, int, str, str]]) -> None:
    queue, expected = WriteQueue(max_writes=5, max_numbers=60), list[Write]()
    for num_tokens, num_taken, key, discarded in steps:
        one = write(num_tokens, key.encode())
        fits = len(expected) < 5 and sum(other.num_numbers for other in expected) + num_tokens <= 60
        assert queue.put(one) == fits
        expected += [one] * fits
        left = [other for other in expected if other.key != discarded.encode()]
        assert queue.discard(discarded.encode()) == len(expected) - len(left)
        expected = left
        assert queue.take(num_taken) == expected[:num_taken]
        del expected[:num_taken]
        assert len(queue) == len(expected)
    queue.clear()
    assert len(queue) == 0 and queue.put(write(60))
