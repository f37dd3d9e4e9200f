"""How ``whoami-router where`` shows what it found: as an object and as lines."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from whoami_router import where
from whoami_router.nginx_pools import Pool
from whoami_router.ring import Server, key_hash


def shown_places(
    pools: Sequence[Pool], names: Sequence[str], identifiers: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the server of each user in each pool, as an object and as lines."""
    objects = []
    lines: list[str] = []
    for name, identifier in zip(names, identifiers, strict=True):
        places = [where.place(pool, identifier) for pool in pools]
        objects.append(_user_object(name, identifier, places))
        lines += [*([""] if lines else []), *_user_lines(name, identifier, places)]
    return {"users": objects}, lines


def _user_object(name: str, identifier: str, places: Sequence[where.Place]) -> dict[str, Any]:
    return {
        "user": name,
        "identifier": identifier,
        "pools": [
            {
                "pool": place.pool.name,
                "groups": place.pool.groups,
                "locations": place.pool.locations,
                "servers": len(place.pool.servers),
                "key": place.key,
                **(
                    dict.fromkeys(("hash", "server", "point", "down", "then"))
                    if place.pick is None
                    else asdict(place.pick)
                ),
                "depends_on": place.unknown,
            }
            for place in places
        ],
    }


def _user_lines(name: str, identifier: str, places: Sequence[where.Place]) -> Iterator[str]:
    hashed = _point(key_hash(identifier.encode()))
    yield f"{_printable(name)}: identifier {identifier}, hash {hashed}"
    yield ""
    rows = [("pool", "server", "point", "if that is away", "requests")]
    remarks = []
    for place in places:
        pool, pick = place.pool, place.pick
        requests = ", ".join([*pool.groups, *pool.locations])
        if pick is None:
            rows.append((pool.name, "-", "-", "-", requests))
            remarks.append(f"{pool.name}: the key depends on {place.unknown}, too.")
            continue
        only = len(pool.servers) == 1
        rows.append(
            (
                pool.name,
                pick.server or "-",
                "-" if pick.point is None else _point(pick.point),
                pick.then or "-",
                requests,
            )
        )
        if place.key != identifier:
            remarks.append(f"{pool.name}: the key is {place.key}, its hash {_point(pick.hash)}.")
        if pick.server is None:
            why = "it is down" if only else "all servers near are down, or the key is empty"
            remarks.append(f"{pool.name}: {why}; nginx takes what is left in turn.")
        elif pick.down:
            are = "is" if len(pick.down) == 1 else "are"
            remarks.append(f"{pool.name}: {', '.join(pick.down)} {are} down and passed by.")
    yield from _table(rows)
    if any(place.pick is not None and place.pick.point is not None for place in places):
        remarks.append("A server is picked by the first point on its pool's ring from the hash on.")
    yield from ["", *remarks] if remarks else []


def shown_spread(
    pools: Sequence[Pool],
    identifiers: Sequence[str],
    to_change: tuple[Pool, tuple[Server, ...]] | None,
) -> tuple[dict[str, Any], list[str]]:
    """Return how the users are spread over each pool, as an object and as lines."""
    crowd = where.Crowd(identifiers)
    repeated = len(identifiers) - len(crowd)
    answer: dict[str, Any] = {"users": len(crowd), "repeated": repeated, "pools": []}
    lines: list[str] = []
    for pool in pools if to_change is None else [to_change[0]]:
        spread = where.spread(pool, crowd)
        shown = {"pool": pool.name, "groups": pool.groups, "locations": pool.locations}
        answer["pools"].append(shown | _spread_object(spread))
        lines += [*([""] if lines else []), f"{pool.name}: {counted(len(crowd), 'user')}", ""]
        lines += _spread_lines(spread)
        if to_change is None:
            continue
        change = where.change(pool, crowd, to_change[1])
        answer["pools"][-1]["change"] = {
            "moved": change.moved,
            "moves": [
                {"from": old, "to": new, "users": number} for old, new, number in change.moves
            ],
            **_spread_object(change.after),
        }
        lines += ["", *_change_lines(change)]
    if repeated:
        lines += ["", f"{counted(repeated, 'line')} named a user again, who counts once."]
    return answer, lines


def _spread_object(spread: where.Spread) -> dict[str, Any]:
    return {
        "servers": [asdict(share) for share in spread.shares],
        "elsewhere": spread.elsewhere,
        "fullest": spread.fullest,
        "emptiest": spread.emptiest,
    }


def _spread_lines(spread: where.Spread) -> Iterator[str]:
    down = {one.text for one in spread.pool.servers if one.down}
    rows = [("server", "weight", "users", "share", "by weight")]
    rows += [
        (
            share.server + (" (down)" if share.server in down else ""),
            str(share.weight),
            f"{share.users:,}",
            f"{share.part:.1%}",
            f"{share.expected:.1%}",
        )
        for share in spread.shares
    ]
    if spread.elsewhere:
        part = spread.elsewhere / spread.users
        rows.append(("not by user", "", f"{spread.elsewhere:,}", f"{part:.1%}", ""))
    yield from _table(rows, numbers=4)
    if len(spread.shares) > 1:
        yield ""
        yield (
            f"Of what its weight makes for, the fullest has {1 + spread.fullest:.1%}, "
            f"the emptiest {1 - spread.emptiest:.1%}."
        )


def _change_lines(change: where.Change) -> Iterator[str]:
    after = change.after
    yield (
        f"With the change, {change.moved:,} of {counted(after.users, 'user')} would move "
        f"({change.moved / after.users:.1%})."
    )
    if change.moves:
        yield ""
        rows = [("from", "to", "users")]
        rows += [(old or "-", new or "-", f"{number:,}") for old, new, number in change.moves]
        yield from _table(rows, numbers=1)
    yield ""
    yield from _spread_lines(after)


def _table(rows: Sequence[Sequence[str]], *, numbers: int = 0) -> Iterator[str]:
    """Yield the rows with aligned columns, the last ``numbers`` of them to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first_number = len(widths) - numbers
    for row in rows:
        cells = [
            cell.rjust(width) if index >= first_number else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  " + "  ".join(cells).rstrip()


def counted(number: int, what: str) -> str:
    """Return the number and what it is the number of."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _point(value: int) -> str:
    return f"{value:08x}"


def _printable(text: str) -> str:
    """Return the text without what a terminal would obey."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
