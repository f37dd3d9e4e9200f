"""``whoami-router where``: which server nginx picks for a user, and how users are spread."""

import asyncio
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import click

from whoami_router import where
from whoami_router.cli import options
from whoami_router.cli.where_shown import counted, shown_places, shown_spread
from whoami_router.nginx_conf import UnreadableConfiguration, load
from whoami_router.nginx_pools import NoAnswer, Pool, server, server_weight, survey
from whoami_router.ring import Server
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
@options.nginx_conf("nginx's configuration: nginx.conf, or the file with the upstreams.")
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
        answer, text = shown_places(found.pools, listed.names, listed.identifiers)
    else:
        answer, text = shown_spread(found.pools, listed.identifiers, to_change)
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
        yield f"Left out: {counted(len(lines), 'line')} ({named}{more}): {reason}."


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
