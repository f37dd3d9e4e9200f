"""By how much longer than usual tests go on, to find what is rare."""

import os

SOAK = float(os.environ.get("WHOAMI_ROUTER_SOAK", "1"))


def times(count: int) -> int:
    """Return how often to do what is usually done so many times."""
    return max(1, round(count * SOAK))
