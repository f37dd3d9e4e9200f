"""``whoami-router check``: what is right, what is wrong, and the remedy."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from whoami_router.check import router
from whoami_router.check.findings import Finding, all_well, as_json, as_text, note, wrong
from whoami_router.cli import options
from whoami_router.settings import ListenAddress

if TYPE_CHECKING:
    from whoami_router.check.token_file import TokenFile

# What a part needs is imported when it is asked for: the health check of a container looks at the
# router alone, every few seconds, and aiohttp takes longer to load than all that does.
# ruff: noqa: PLC0415

_PARTS = ("synapse", "token", "router", "nginx")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What is to be looked at."""

    parts: tuple[str, ...]
    synapse_urls: tuple[str, ...]
    listen: ListenAddress
    admin_listen: ListenAddress | None
    whoami_timeout: float
    token_file: str | None
    nginx_conf: Path | None


@click.command("check")
@options.synapse_url
@options.listen
@options.admin_listen
@options.whoami_timeout
@click.option(
    "--token-file",
    metavar="FILE",
    envvar="WHOAMI_ROUTER_TOKEN_FILE",
    show_envvar=True,
    help="Say whose access token is in this file (-: standard input). It is never printed.",
)
@options.nginx_conf(
    "Look at nginx's configuration in this file, and in those that it includes, and whether "
    "whoami-router answers where nginx asks."
)
@click.option(
    "--only",
    metavar="PART",
    multiple=True,
    type=click.Choice(_PARTS),
    help="Look at this part only: synapse, token, router or nginx. Repeat it for several.",
)
@click.option("--json", "as_object", is_flag=True, help="Print one object of JSON.")
def command(*, only: tuple[str, ...], as_object: bool, **given: Any) -> None:  # noqa: ANN401
    """Tell what is right and what is wrong, and the remedy.

    Give it the options, or the environment, that the service has. It asks Synapse at each URL,
    whose token is in --token-file, a running router, and reads nginx's configuration. A line for
    each thing: ok, wrong, or note for what breaks nothing. The status is 0 if nothing is wrong,
    1 if something is, 2 if the command is.

    With --json it prints {"ok": true, "findings": [...]}, each with "part", "status" (ok, wrong,
    note), "what", "remedy" and "place" ("file:line"); the latter two may be null.

    `check --only router` is for health checks: it is quick, and does not depend on Synapse.
    """
    asked = _Asked(parts=only or _PARTS, **given)
    for part, file in (("token", asked.token_file), ("nginx", asked.nginx_conf)):
        if part in only and file is None:
            option = "--token-file" if part == "token" else "--nginx-conf"
            raise click.UsageError(f"--only {part} needs {option}.")
    findings = _findings(asked)
    if as_object:
        import json

        click.echo(json.dumps(as_json(findings), indent=2))
    else:
        click.echo(as_text(findings))
    sys.exit(0 if all_well(findings) else 1)


def _findings(asked: _Asked) -> list[Finding]:
    findings: list[Finding] = []
    token, about_token = _token(asked)
    looks_whose = "token" in asked.parts and token is not None
    usable: list[str] = []
    if "synapse" in asked.parts or looks_whose:
        found, usable = _synapse(asked)
        findings += found
    findings += about_token
    identifier = None
    if token is not None and looks_whose:
        from whoami_router.check import owner

        # Only these: to a server that is no Synapse no token is sent.
        whose = owner.ask(token.token, usable, timeout=asked.whoami_timeout)
        findings += whose.findings
        identifier = whose.identifier
    if "router" in asked.parts:
        findings += _router(asked, token, identifier)
    if "nginx" in asked.parts:
        findings += _nginx(asked)
    return findings


def _token(asked: _Asked) -> tuple["TokenFile | None", Sequence[Finding]]:
    """Return the token that is to be tried, and what there is to say of its file."""
    part = "token" if "token" in asked.parts else "router"
    if part not in asked.parts:
        return None, []
    if asked.token_file is None:
        missing = note(part, "not looked at: there is no --token-file")
        return None, [missing] if part == "token" else []
    from whoami_router.check.token_file import NoToken, named, read

    try:
        token = read(asked.token_file)
    except NoToken as exc:
        remedy = "give --token-file a file with an access token in it that this user may read"
        return None, [wrong(part, f"{named(asked.token_file)} {exc}", remedy)]
    if part == "token" and token.readable_by_others:
        readable = note(part, "every user of this machine may read --token-file", "chmod 600 it")
        return token, [readable]
    return token, []


def _synapse(asked: _Asked) -> tuple[Sequence[Finding], list[str]]:
    """Return what was found, and the URLs at which Synapse can be asked."""
    from whoami_router.check import synapse

    looked = list(synapse.look(asked.synapse_urls, timeout=asked.whoami_timeout))
    usable = [one.url for one in looked if one.usable]
    wanted = "synapse" in asked.parts or not usable
    return [one.finding for one in looked] if wanted else [], usable


def _router(asked: _Asked, token: "TokenFile | None", identifier: str | None) -> Sequence[Finding]:
    findings = list(
        router.look(
            asked.listen,
            asked.admin_listen,
            ready="synapse" in asked.parts,
            timeout=asked.whoami_timeout,
        )
    )
    address = router.connectable(asked.listen)
    # To a server that is no whoami-router no token is sent.
    if token is not None and address is not None and all_well(findings):
        findings += router.resolve(
            address,
            token.token,
            timeout=asked.whoami_timeout,
            expected=identifier,
        )
    return findings


def _nginx(asked: _Asked) -> Sequence[Finding]:
    if asked.nginx_conf is None:
        return [note("nginx", "not looked at: there is no --nginx-conf")]
    from whoami_router.check import nginx

    return nginx.look(
        asked.nginx_conf,
        whoami_timeout=asked.whoami_timeout,
        listen=asked.listen if "router" in asked.parts else None,
    )
