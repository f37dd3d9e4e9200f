"""What a line looks like, for people and for programs."""

import io
import json
import logging

import pytest
import structlog

from whoami_router import logs

logger = logging.getLogger("whoami_router.test_logs")


@pytest.fixture
def written(monkeypatch):
    """Return a function that configures logging and returns where it goes; undone afterwards."""
    loggers = [logging.getLogger(name) for name in ("whoami_router", "uvicorn.error")]
    levels = [each.level for each in loggers]

    def configure(format_, level="info"):
        monkeypatch.setattr(logging.getLogger(), "handlers", [])
        stream = io.StringIO()
        logs.configure(level, format_, stream)
        return stream

    yield configure
    for each, level in zip(loggers, levels, strict=True):
        each.setLevel(level)


def test_json_is_an_object_a_line_with_the_fields(written):
    stream = written("json")
    logger.warning("too much", extra={"requests": 3, "reason": 'a "b"\nc'})
    logger.info("next")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first.pop("timestamp").endswith("Z")
    assert first == {"event": "too much", "level": "warning", "requests": 3, "reason": 'a "b"\nc'}
    assert (second["event"], second["level"]) == ("next", "info")


def test_console_is_a_line_whatever_a_value_holds(written):
    stream = written("console")
    logger.warning("too much", extra={"requests": 3, "reason": "a\nb\x1b[31m"})
    [line] = stream.getvalue().splitlines()
    assert "too much" in line
    assert "requests=3" in line
    assert "\x1b" not in line


@pytest.mark.parametrize("format_", ["console", "json"])
def test_level_is_ours_alone_because_libraries_quote_requests(written, format_):
    stream = written(format_, "debug")
    for name in ("whoami_router.resolver", "aiohttp.client", "httpx", "asyncio", "uvicorn.access"):
        logging.getLogger(name).debug("from %s", name)
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    [line] = stream.getvalue().splitlines()
    assert "from whoami_router.resolver" in line


@pytest.mark.parametrize("format_", ["console", "json"])
def test_traceback_shows_no_value_of_a_variable(written, format_):
    # structlog's own does, where rich is installed, as it is here.
    assert structlog.dev.default_exception_formatter is not structlog.dev.plain_traceback
    stream = written(format_)
    token = "very-secret"

    def fail():
        return 1 / len(token[:0])

    try:
        fail()
    except ZeroDivisionError:
        logging.getLogger("uvicorn.error").exception("failed")
    assert "ZeroDivisionError" in stream.getvalue()
    if format_ == "json":
        assert json.loads(stream.getvalue())["exception"].startswith("Traceback (most recent")
    assert token not in stream.getvalue()


def test_place_of_a_defect_is_readable_on_a_console(written):
    stream = written("console")
    logger.error(
        "error while resolving", extra={"error": "KeyError", "stack": "  File 1\n  File 2\n"}
    )
    assert "\n  File 1\n  File 2" in stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_colours_are_for_terminals(monkeypatch, written):
    written("console")  # which undoes the levels
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logs.configure("info", "console", terminal := Terminal())
    logger.warning("too much")
    assert "\x1b[" in terminal.getvalue()
