"""What was logged, as the tests see it: with the fields that are not in the message."""

import logging

_ALWAYS = {*vars(logging.makeLogRecord({})), "message", "asctime"}


def fields(record):
    """Return what a record says besides its message."""
    return {name: value for name, value in vars(record).items() if name not in _ALWAYS}


def text(caplog):
    """Return all there is, to look for what must not be there."""
    return "\n".join(f"{each.getMessage()} {vars(each)}" for each in caplog.records)
