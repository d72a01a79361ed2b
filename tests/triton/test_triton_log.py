"""What models log reaches Triton's log: one line a record, without a prompt's text, without holding anybody up."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from types import FunctionType

import pytest
from autoglm_client import printable as client_printable
from autoglm_engine.errors import DeviceError, InvalidRequest
from autoglm_engine.own_failures import own_failure
from autoglm_engine.triton.log import TritonLog, line_of, log_to_triton
from autoglm_engine.triton.printable import one_line

SECRET = "my secret prompt"


class FakeTriton:
    """`pb_utils.Logger` that may be held up, or fail."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.begun = threading.Event()
        self.failure: Exception | None = None

    def log_verbose(self, message: str) -> None:
        self._log("verbose", message)

    def log_info(self, message: str) -> None:
        self._log("info", message)

    def log_warn(self, message: str) -> None:
        self._log("warn", message)

    def log_error(self, message: str) -> None:
        self._log("error", message)

    def _log(self, level: str, message: str) -> None:
        self.begun.set()
        assert self.may_go.wait(60)
        if self.failure:
            raise self.failure
        self.lines.append((level, message))


@pytest.fixture
def triton() -> FakeTriton:
    return FakeTriton()


def logger_of(handler: logging.Handler) -> logging.Logger:
    made = logging.Logger("autoglm_engine.redis")
    made.addHandler(handler)
    return made


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("autoglm_engine.engine", logging.ERROR, __file__, 1, message, args, None)
    vars(made).update(extra)
    return made


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def told(error: BaseException) -> str:
    return line_of(record("it failed", exc_info=(type(error), error, error.__traceback__)))


def test_each_level_has_its_own(triton: FakeTriton) -> None:
    handler = TritonLog(triton, pause=0)
    log = logger_of(handler)
    log.setLevel(logging.DEBUG)
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        log.log(level, "at %d", level)
    handler.close()
    assert triton.lines == [
        ("verbose", "redis: at 10"),
        ("info", "redis: at 20"),
        ("warn", "redis: at 30"),
        ("error", "redis: at 40"),
        ("error", "redis: at 50"),
    ]
    assert handler.num_dropped == 0


def test_a_request_is_named_as_triton_does_it() -> None:
    assert line_of(record("it failed", request_id="ab#1")) == "[request id: ab#1] engine: it failed"
    assert line_of(record("it failed", request_id="")) == "engine: it failed"


def test_a_line_stays_one_line_and_commands_no_terminal() -> None:
    line = line_of(record("said %s", "a\nb\tc\x1b[2J\u202e\u2028\ud800", request_id="x\r\nE1129 forged"))
    assert line == r"[request id: x\r\nE1129 forged] engine: said a\nb\tc\x1b[2J\u202e\u2028\ud800"
    line.encode()


def test_the_rules_are_the_clients_and_newline_and_tab() -> None:
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        expected = {"\n": r"\n", "\t": r"\t"}.get(character, client_printable.visible(character))
        if one_line(character) != expected:
            pytest.fail(f"U+{number:04X}")


def test_a_long_line_is_cut() -> None:
    line = line_of(record("x" * 100_000))
    assert line.endswith("x ... (100008 characters)") and len(line) < 4100


@pytest.mark.parametrize(
    "error",
    [
        ValueError(SECRET),
        KeyError(SECRET),
        UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET),
        IndexError(SECRET),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_quotes_a_value_is_told_by_kind_and_place(error: Exception) -> None:
    line = told(raised(error))
    assert SECRET not in line
    assert line == f"engine: it failed: {type(error).__name__} at test_triton_log.py:{_line(raised)} raised"


def test_other_words_and_causes_are_told() -> None:
    error = raised(DeviceError("the GPU fell off"))
    error.__cause__ = raised(OSError(28, "No space left on device"))
    line = told(error)
    assert line.startswith("engine: it failed: DeviceError: the GPU fell off at test_triton_log.py:")
    assert "; it came from OSError: [Errno 28] No space left on device at test_triton_log.py:" in line
    assert "top_p is 0" in told(raised(InvalidRequest("top_p is 0")))


def test_a_request_that_fails_by_itself_is_named(caplog: pytest.LogCaptureFixture) -> None:
    own_failure(raised(RuntimeError("boom")), "ab#1")
    (found,) = caplog.records
    assert line_of(found).startswith(
        "[request id: ab#1] own_failures: a request failed by itself: RuntimeError: boom at "
    )


def test_a_log_that_takes_nothing_holds_nobody_up_and_what_is_lost_is_counted(triton: FakeTriton) -> None:
    triton.may_go.clear()
    handler = TritonLog(triton, max_waiting=10, pause=0)
    log = logger_of(handler)
    log.warning("first")
    assert triton.begun.wait(60)
    for number in range(1000):
        log.warning("number %d", number)
    assert handler.num_dropped == 990
    triton.may_go.set()
    handler.close()
    assert [line for _, line in triton.lines] == [
        "redis: first",
        *(f"redis: number {number}" for number in range(10)),
        "triton_log: 990 lines were dropped, since the log did not take them in time",
    ]


def test_nothing_is_raised_into_who_logs(triton: FakeTriton) -> None:
    triton.failure = RuntimeError("the server has gone")
    handler = TritonLog(triton, pause=0)
    log = logger_of(handler)
    log.warning("one")
    log.warning("%d", "no number")
    handler.close()
    assert handler.num_dropped == 2
    assert triton.lines == []


@pytest.fixture
def _loggers_as_before() -> Iterator[None]:
    root, package = logging.getLogger(), logging.getLogger("autoglm_engine")
    handlers, level = list(root.handlers), package.level
    yield
    root.handlers[:] = handlers
    package.setLevel(level)
    logging.captureWarnings(capture=False)


@pytest.mark.usefixtures("_loggers_as_before")
def test_the_packages_news_and_others_warnings_are_logged(triton: FakeTriton) -> None:
    handler = log_to_triton(triton)
    logging.getLogger("autoglm_engine.plan").info("weights stay")
    logging.getLogger("redis.connection").info("chatter")
    logging.getLogger("redis.connection").warning("lost")
    handler.close()
    assert triton.lines == [("info", "plan: weights stay"), ("warn", "redis.connection: lost")]


def _line(function: Callable[..., object]) -> int:
    assert isinstance(function, FunctionType)
    return function.__code__.co_firstlineno + 2
