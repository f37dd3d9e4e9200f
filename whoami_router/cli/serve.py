"""``whoami-router serve``: run the service."""

from typing import Any

import click

from whoami_router import serve
from whoami_router.cli import options
from whoami_router.cli.options import option
from whoami_router.listener import CannotListen
from whoami_router.settings import Settings


@click.command("serve")
@options.synapse_url
@options.listen
@options.admin_listen
@option("cache-size", "TOKENS", options.count, "How many tokens to remember.")
@option("cache-ttl", "SECONDS", options.seconds, "How long to remember a token's owner.")
@option(
    "stale-ttl",
    "SECONDS",
    options.seconds_or_none,
    "How much longer to go by it while Synapse is unavailable.",
)
@option("rejected-size", "TOKENS", options.count, "How many rejected tokens to remember.")
@option(
    "rejected-ttl", "SECONDS", options.seconds_or_none, "How long to remember a rejected token."
)
@options.whoami_timeout
@option("max-lookups", "LOOKUPS", options.count, "How many tokens to ask Synapse about at once.")
@option(
    "edge-ttl",
    "SECONDS",
    options.whole_seconds,
    "After how long nginx asks again, if its edge cache is on (0: it remembers nothing new).",
)
@option(
    "native-tokens",
    None,
    click.Choice(["whoami", "decode"]),
    "With decode, Synapse is not asked about tokens that it issued itself: they name the user.",
)
@option(
    "log-level",
    None,
    click.Choice(["debug", "info", "warning", "error"]),
    "At debug, every decision is logged (never a token).",
)
@option(
    "log-format",
    None,
    click.Choice(["console", "json"]),
    "Lines for people, or an object of JSON a line.",
)
def command(**given: Any) -> None:  # noqa: ANN401  (click passes each option by its name)
    """Run the service."""
    try:
        serve.serve(Settings(**given))
    except CannotListen as exc:
        raise click.ClickException(str(exc)) from exc
