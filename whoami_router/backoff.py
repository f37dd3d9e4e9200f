"""Says when to leave a server alone that does not answer, and when to ask it again."""

import random
from collections.abc import Callable

# So many failures in a row are a server that is away; fewer are accidents.
_TOLERATED = 3

# Seconds.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 10.0
# A server may ask for more than our longest pause, but not to be forgotten.
_LONGEST_WISH = 300.0


class Backoff:
    """The state of one server: asked freely, or left alone for a growing moment.

    After three failures in a row the server rests for a second, and each time that it is then
    asked in vain for twice as long, up to ten seconds; a random factor between a half and one
    keeps several processes apart. After the pause one question, the probe, decides for all.

    ``clock`` returns seconds that never go backwards, ``rng`` a number from 0 to 1.
    """

    def __init__(
        self, *, clock: Callable[[], float], rng: Callable[[], float] = random.random
    ) -> None:
        self._clock = clock
        self._rng = rng
        self._failures = 0
        self._pauses = 0
        self._rests_until = 0.0
        self._away = False
        self._probing = False

    @property
    def away(self) -> bool:
        """Whether the server counts as away: it rests, or a probe has yet to find it back."""
        return self._away

    @property
    def resting(self) -> bool:
        """Whether nobody should ask now."""
        return self._clock() < self._rests_until

    @property
    def unasked_for(self) -> float:
        """For how many seconds the server, which is away, could have been asked, and was not."""
        if not self._away or self._probing:
            return 0.0
        return max(0.0, self._clock() - self._rests_until)

    @property
    def mark(self) -> int:
        """What a question is to take along from its beginning to its report.

        A question that began before the last pause says nothing new, or a hundred that hang
        together would count as a hundred pauses.
        """
        return self._pauses

    def start_probe(self) -> bool:
        """Return whether the caller is the one who should ask a server that is away.

        Whoever gets True reports back by ``succeeded`` or ``failed``.
        """
        if not self._away or self._probing or self.resting:
            return False
        self._probing = True
        return True

    def succeeded(self, mark: int) -> None:
        """Note an answer."""
        if mark == self._pauses:
            self._failures = 0
            self._away = self._probing = False

    def failed(self, mark: int, *, retry_after: float | None = None) -> None:
        """Note that there was no answer; ``retry_after`` is how long the server wants to rest.

        In seconds; None if it did not say so. A server that says so rests at once.
        """
        wish = None if retry_after is None else min(retry_after, _LONGEST_WISH)
        if mark == self._pauses:
            self._failures += 1
        elif wish is None:  # which is heard at any time
            return
        if wish is None and self._failures < _TOLERATED:
            return
        self._failures = max(self._failures, _TOLERATED)
        self._away, self._probing = True, False
        self._pauses += 1
        doublings = min(self._failures - _TOLERATED, 10)  # 2**10 is beyond the longest
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**doublings) * (0.5 + self._rng() / 2)
        end = self._clock() + max(pause, wish or 0)
        self._rests_until = max(self._rests_until, end)
