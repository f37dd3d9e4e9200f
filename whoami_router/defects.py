"""Reports what should never happen, without what it happened to."""

import logging
import math
import traceback
from collections.abc import Callable

# Seconds between two lines about defects: one may be met by each request.
_LOG_INTERVAL = 60


class Defects:
    """Says that there is a defect, and where, at most once a minute.

    ``clock`` returns seconds that never go backwards.
    """

    def __init__(self, logger: logging.Logger, *, clock: Callable[[], float]) -> None:
        self._logger = logger
        self._clock = clock
        self._times = 0
        self._silent_until = -math.inf

    def report(self, event: str, exc: Exception) -> None:
        """Log the place of an exception but not its message, which could quote a request."""
        self._times += 1
        now = self._clock()
        if now < self._silent_until:
            return
        self._logger.error(
            event,
            extra={
                "error": type(exc).__name__,
                "times": self._times,
                "stack": "".join(traceback.format_tb(exc.__traceback__)),
            },
        )
        self._times, self._silent_until = 0, now + _LOG_INTERVAL
