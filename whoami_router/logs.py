"""What the log looks like: lines for people, or an object of JSON a line."""

import logging
from typing import TextIO

import structlog
from structlog.typing import Processor


def configure(level: str, format_: str, stream: TextIO | None) -> None:
    """Have our modules log from ``level`` on, as ``console`` or ``json``.

    ``stream`` is None where standard error was closed: then nothing is logged.

    Modules log by Python's own logging: an event that is the same each time, and what differs as
    ``extra``, which become the fields of the line.
    """
    render: list[Processor]
    if format_ == "json":
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        # (!) plain_traceback: the default one, where rich is installed, shows the values of local
        # variables, and with them tokens.
        render = [
            structlog.dev.ConsoleRenderer(
                colors=stream is not None and stream.isatty(),
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.ExtraAdder(),
                structlog.processors.TimeStamper(fmt="iso", utc=True),
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(handlers=[handler])
    # Only ours: at debug level libraries quote requests, and with them tokens.
    logging.getLogger("whoami_router").setLevel(level.upper())
    # Its warnings are one for each request that is no HTTP: nginx sends none, and nobody else
    # shall fill the disk.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
