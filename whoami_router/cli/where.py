"""``whoami-router where``: which server nginx picks for a user, and how users are spread."""

import asyncio
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import click

from whoami_router import where
from whoami_router.cli import options
from whoami_router.nginx_conf import UnreadableConfiguration, load
from whoami_router.nginx_pools import NoAnswer, Pool, server, server_weight, survey
from whoami_router.ring import Server, key_hash
from whoami_router.tokens import is_askable

# So many tokens Synapse is asked about at once: it has other work.
_AT_ONCE = 8

# So many lines are named that could not be read.
_NAMED = 5


@dataclass(slots=True)
class _Users:
    """Who is asked about, and which lines of a list are of no use, by the reason.

    The names are as they were given, the identifiers as nginx sees them; both in the same order.
    """

    names: list[str] = field(default_factory=list)
    identifiers: list[str] = field(default_factory=list)
    left_out: dict[str, list[int]] = field(default_factory=dict)

    def add(self, name: str) -> None:
        """Add a user; raises ValueError, worded for the administrator."""
        self.identifiers.append(where.identifier(name))
        self.names.append(name)

    def leave_out(self, line: int, reason: str) -> None:
        """Note a line of no use."""
        self.left_out.setdefault(reason, []).append(line)


def _user(text: str) -> str:
    try:
        where.identifier(text)
    except where.IsToken as exc:
        raise click.BadParameter(f"what stands here {exc}.") from None
    return text


def _server(text: str) -> Server:
    return server(text.split())


def _weight(text: str) -> tuple[str, int]:
    name, sign, weight = text.rpartition("=")
    if not (sign and name):
        raise ValueError("needs SERVER=N, for example 127.0.0.1:8083=2")
    return name, server_weight(weight)


@click.command("where")
@click.argument("users", metavar="[USER]...", nargs=-1, type=options.parsed_by(_user))
@click.option(
    "--nginx-conf",
    metavar="FILE",
    type=click.Path(path_type=Path),
    envvar="WHOAMI_ROUTER_NGINX_CONF",
    show_envvar=True,
    help="nginx's configuration: nginx.conf, or the file with the upstreams.",
)
@click.option(
    "--pool",
    "pools",
    metavar="NAME",
    multiple=True,
    help="Only this upstream. Repeat it for several.",
)
@click.option(
    "--distribution",
    metavar="FILE",
    type=click.File("rb"),
    help="How the users in this file (-: standard input) are spread over the servers. A user a "
    "line; blank lines and lines that begin with # are skipped.",
)
@click.option(
    "--add",
    metavar="SERVER",
    multiple=True,
    type=options.parsed_by(_server),
    help="With --distribution: how many would move if there was this server, too, for example "
    "127.0.0.1:8085 or '127.0.0.1:8085 weight=2'. Repeat it for several.",
)
@click.option(
    "--remove",
    metavar="SERVER",
    multiple=True,
    help="The same if this server went.",
)
@click.option(
    "--weight",
    "weights",
    metavar="SERVER=N",
    multiple=True,
    type=options.parsed_by(_weight),
    help="The same if this server had another weight.",
)
@click.option(
    "--tokens",
    type=click.Choice(["off", "whoami"]),
    default="off",
    show_default=True,
    help="With whoami, the lines of standard input, or of the file of --distribution, are access "
    "tokens, and Synapse is asked whose they are. They are never printed.",
)
@options.synapse_url
@options.whoami_timeout
@click.option("--json", "as_json", is_flag=True, help="Print one object of JSON.")
def command(  # noqa: PLR0913  (click passes each option by its name)
    *,
    users: tuple[str, ...],
    nginx_conf: Path | None,
    pools: tuple[str, ...],
    distribution: BinaryIO | None,
    add: tuple[Server, ...],
    remove: tuple[str, ...],
    weights: tuple[tuple[str, int], ...],
    tokens: str,
    synapse_urls: tuple[str, ...],
    whoami_timeout: float,
    as_json: bool,
) -> None:
    """Tell which server nginx picks for USER, in each pool that goes by user.

    USER is @localpart:domain, a localpart, or the sha256:... that a token whose owner is unknown
    goes by. It is computed from nginx's configuration, as nginx does; nobody is asked, unless by
    --tokens whoami.

    For example: whoami-router where @alice:example.org --nginx-conf /etc/nginx/nginx.conf
    """
    changes = {"add": add, "remove": remove, "weights": dict(weights)}
    changed = any(changes.values())
    if nginx_conf is None:
        raise click.UsageError("Needs --nginx-conf FILE, for example /etc/nginx/nginx.conf.")
    _refuse_contradictions(users, listed=distribution is not None, tokens=tokens, changed=changed)
    try:
        found = survey(load(nginx_conf), pools)
    except (UnreadableConfiguration, NoAnswer) as exc:
        raise click.ClickException(str(exc)) from exc
    # First what may be wrong, then what takes long.
    to_change = _to_change(found.pools, changes) if changed else None

    lines = _lines(distribution or sys.stdin.buffer)
    if tokens == "whoami":
        listed = asyncio.run(_owners(lines, synapse_urls, whoami_timeout))
    else:
        listed = _given(users) if users else _read(lines)
    if not listed.names:
        raise click.ClickException(" ".join(["There is no user to look for.", *_left_out(listed)]))

    if distribution is None:
        answer, text = _places(found.pools, listed)
    else:
        answer, text = _distribution(found.pools, listed, to_change)
    notes = [*found.notes, *_left_out(listed)]
    if as_json:
        answer = {"configuration": str(nginx_conf), **answer, "notes": notes}
        click.echo(json.dumps(answer, indent=2))
        return
    click.echo("\n".join([*text, *(line for note in notes for line in ("", f"Note: {note}"))]))


def _refuse_contradictions(
    users: Sequence[str], *, listed: bool, tokens: str, changed: bool
) -> None:
    if changed and not listed:
        raise click.UsageError("--add, --remove and --weight need --distribution FILE.")
    if users and (listed or tokens == "whoami"):
        raise click.UsageError(
            "Either USER or a list: with --distribution and --tokens whoami, users are in the list."
        )
    if not users and not listed and tokens == "off":
        raise click.UsageError("Needs a USER, for example @alice:example.org, or --distribution.")


def _given(names: Sequence[str]) -> _Users:
    users = _Users()
    for name in names:
        users.add(name)  # which has been parsed
    return users


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that say something, with their numbers."""
    for number, line in enumerate(stream, 1):
        text = line.strip()
        if text and not text.startswith(b"#"):
            yield number, text


def _read(lines: Iterable[tuple[int, bytes]]) -> _Users:
    users = _Users()
    for number, line in lines:
        try:
            users.add(line.decode())
        except UnicodeDecodeError:
            users.leave_out(number, "is not UTF-8")
        except ValueError as exc:
            users.leave_out(number, str(exc))
    return users


async def _owners(
    lines: Iterable[tuple[int, bytes]],
    urls: Sequence[str],
    timeout: float,  # noqa: ASYNC109
) -> _Users:
    """Return whose the tokens are, as Synapse says."""
    # Here, as it takes longer to load than all that is done without it.
    from whoami_router.whoami import Caller, Whoami, WhoamiUnavailable  # noqa: PLC0415

    # What the service logs of this is said here by the line.
    logging.getLogger("whoami_router").setLevel(logging.CRITICAL)
    users = _Users()
    whoami = Whoami(urls, timeout=timeout)
    free = asyncio.Semaphore(_AT_ONCE)

    async def owner(token: bytes) -> str:
        if not is_askable(token):
            raise ValueError("is no access token")
        async with free:
            try:
                owner = await whoami.owner(token, Caller())
            except WhoamiUnavailable as exc:
                raise ValueError(f"is not answered: {exc}") from None
        if owner is None:
            raise ValueError("is rejected by Synapse; nginx goes by the token itself")
        if not owner.user_id.startswith("@"):
            raise ValueError("is of an owner without a user ID")
        return owner.user_id

    asked = [(number, asyncio.create_task(owner(token))) for number, token in lines]
    try:
        for number, answer in asked:
            try:
                users.add(await answer)
            except ValueError as exc:
                users.leave_out(number, str(exc))
    finally:
        await whoami.aclose()
    return users


def _left_out(users: _Users) -> Iterator[str]:
    for reason, lines in users.left_out.items():
        named = ", ".join(str(line) for line in lines[:_NAMED])
        more = f" and {len(lines) - _NAMED:,} more" if len(lines) > _NAMED else ""
        yield f"Left out: {_counted(len(lines), 'line')} ({named}{more}): {reason}."


def _to_change(pools: Sequence[Pool], changes: dict[str, Any]) -> tuple[Pool, tuple[Server, ...]]:
    """Return the one pool whose servers are to be others, and these."""
    named = {*changes["remove"], *changes["weights"]}
    having = [pool for pool in pools if named <= {server.text for server in pool.servers}]
    if not having:
        texts = dict.fromkeys(server.text for pool in pools for server in pool.servers)
        raise click.UsageError(
            f"No pool has {' and '.join(sorted(named))}; the servers are {', '.join(texts)}."
        )
    if len({pool.name for pool in having}) > 1:
        names = ", ".join(dict.fromkeys(pool.name for pool in having))
        raise click.UsageError(f"Which pool is to change? Name it by --pool: {names}.")
    pool = having[0]
    try:
        return pool, where.with_changes(pool.servers, **changes)
    except ValueError as exc:
        raise click.UsageError(f"{pool.name} {exc}.") from exc


def _places(pools: Sequence[Pool], users: _Users) -> tuple[dict[str, Any], list[str]]:
    """Return the server of each user in each pool, as an object and as lines."""
    objects = []
    lines: list[str] = []
    for name, identifier in zip(users.names, users.identifiers, strict=True):
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


def _distribution(
    pools: Sequence[Pool], users: _Users, to_change: tuple[Pool, tuple[Server, ...]] | None
) -> tuple[dict[str, Any], list[str]]:
    """Return how the users are spread over each pool, as an object and as lines."""
    crowd = where.Crowd(users.identifiers)
    repeated = len(users.names) - len(crowd)
    answer: dict[str, Any] = {"users": len(crowd), "repeated": repeated, "pools": []}
    lines: list[str] = []
    for pool in pools if to_change is None else [to_change[0]]:
        spread = where.spread(pool, crowd)
        shown = {"pool": pool.name, "groups": pool.groups, "locations": pool.locations}
        answer["pools"].append(shown | _spread_object(spread))
        lines += [*([""] if lines else []), f"{pool.name}: {_counted(len(crowd), 'user')}", ""]
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
        lines += ["", f"{_counted(repeated, 'line')} named a user again, who counts once."]
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
        f"With the change, {change.moved:,} of {_counted(after.users, 'user')} would move "
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


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _point(value: int) -> str:
    return f"{value:08x}"


def _printable(text: str) -> str:
    """Return the text without what a terminal would obey."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
