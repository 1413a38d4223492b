"""Lines of the log: one JSON object each, whatever a stranger put into it."""

import json
import logging
import sys
from typing import Any

import pytest

from polarprune_deploy.serving.service_log import JsonLines, log_to_stderr


def line(
    level: int, message: str, *args: object, error: Exception | None = None, **extra: Any
) -> str:
    record = logging.makeLogRecord(
        {"levelno": level, "levelname": logging.getLevelName(level), "msg": message, "args": args}
        | ({} if error is None else {"exc_info": (type(error), error, error.__traceback__)})
        | extra
    )
    return JsonLines().format(record)


def test_a_line_holds_time_level_message_and_what_was_given() -> None:
    written = line(logging.WARNING, "not loaded: %s", "why", model="net", version="3", ms=1.5)
    found = json.loads(written)
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "warning", "message": "not loaded: why", "model": "net", "version": "3", "ms": 1.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    "words", ["a\nb", 'a"}\n{"level": "info', "\x00\x1b[31m", "\ud800", "ü€", "\u2028"]
)
def test_no_text_of_a_strangers_starts_a_line_or_ends_the_object(words: str) -> None:
    written = line(logging.INFO, words, path=words, error=ValueError(words))
    assert written.isascii()
    assert written.isprintable()
    found = json.loads(written)
    assert found["message"] == found["path"] == words
    assert found["error"] == f"ValueError: {words}"
    assert "ValueError" in found["traceback"]


def test_what_json_does_not_know_is_written_as_text() -> None:
    found = json.loads(line(logging.INFO, "x", thing={1, 2}.__class__, key=b"bytes"))
    assert found["thing"] == "<class 'set'>"
    assert found["key"] == "b'bytes'"


def test_ours_and_those_of_what_it_is_built_on_go_to_stderr_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ("polarprune.serve", "uvicorn.error", "grpc", "asyncio")
    before = {n: (logging.getLogger(n).handlers[:], logging.getLogger(n).level) for n in names}
    try:
        log_to_stderr()
        log_to_stderr()
        for name in names:
            logging.getLogger(name).error("from %s", name)
        logging.getLogger("uvicorn.error").info("started")
        sys.stderr.flush()
        written = capsys.readouterr().err.splitlines()
        assert [json.loads(one)["message"] for one in written] == [f"from {n}" for n in names]
    finally:
        for name, (handlers, level) in before.items():
            logger = logging.getLogger(name)
            logger.handlers[:], logger.propagate = handlers, True
            logger.setLevel(level)
