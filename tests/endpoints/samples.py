"""Paths that a regular expression matches: one for each way through it.

So that two lists of expressions can be compared though they are worded differently: what one list
matches is shown to the other.
"""

import itertools
from collections.abc import Iterable, Iterator
from re import _constants as sre
from re import _parser as sre_parser
from typing import Any

# What stands where the expression leaves it open.
_ANYTHING = "x"


def samples(pattern: str) -> list[str]:
    """Return paths that ``pattern`` matches as a whole.

    Each alternative is in one of them; what may be left out is in one and not in another. Raises
    ``NotImplementedError`` for what no path of Synapse's has needed so far.
    """
    return list(dict.fromkeys(_sequence(sre_parser.parse(pattern))))


def _sequence(nodes: Iterable[tuple[Any, Any]]) -> Iterator[str]:
    for parts in itertools.product(*(list(_node(*node)) for node in nodes)):
        yield "".join(parts)


def _node(code: Any, value: Any) -> Iterator[str]:
    match code:
        case sre.AT:
            yield ""
        case sre.LITERAL:
            yield chr(value)
        case sre.ANY:
            yield "."  # which was not escaped, as in org.matrix
        case sre.NOT_LITERAL | sre.NEGATE | sre.CATEGORY:
            yield _ANYTHING
        case sre.RANGE:
            yield chr(value[0])
        case sre.IN:
            yield from _node(*value[0])
        case sre.SUBPATTERN:
            yield from _sequence(value[-1])
        case sre.BRANCH:
            yield from itertools.chain.from_iterable(map(_sequence, value[1]))
        case sre.MAX_REPEAT:
            yield from _repeated(*value)
        case _:
            raise NotImplementedError(f"{code} in the expression for a path")


def _repeated(least: int, most: int, nodes: Iterable[tuple[Any, Any]]) -> Iterator[str]:
    # [^/]* stands for a name, and nobody asks for the empty one; (...)? may well be left out.
    if (least, most) == (0, 1):
        yield ""
    repeated = [_ANYTHING] if list(nodes) == [(sre.ANY, None)] else _sequence(nodes)
    for sample in repeated:
        yield sample * max(least, 1)
