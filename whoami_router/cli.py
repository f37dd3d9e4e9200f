"""The command: options to Settings to uvicorn."""

import logging
import math
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import click
import uvicorn

from whoami_router import __version__
from whoami_router.app import create_app
from whoami_router.listener import CannotListen, address_of, open_listener
from whoami_router.settings import Settings, parse_listen, parse_synapse_url

logger = logging.getLogger("whoami_router")

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

DEFAULTS = Settings()


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError("needs a whole number of 1 or more, for example 100000")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError("needs a number of seconds above 0, for example 2.5")
    return seconds


def _parsed_by(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Return ``parse``, its ValueError turned into click's, with the value in front."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as exc:
            raise click.BadParameter(f"{text!r} {exc}.") from exc

    return convert


def _option(
    name: str, metavar: str, parse: Callable[[str], object], help_: str
) -> Callable[[F], F]:
    """Return an option with the environment variable and default that go with its name."""
    field = name.replace("-", "_")
    return click.option(
        f"--{name}",
        metavar=metavar,
        type=_parsed_by(parse),
        default=str(getattr(DEFAULTS, field)),
        show_default=True,
        envvar=f"WHOAMI_ROUTER_{field.upper()}",
        show_envvar=True,
        help=help_,
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="whoami-router")
def command() -> None:
    """Tells a reverse proxy which Matrix user a request belongs to.

    nginx asks by auth_request, the answer is the header X-User-Identifier, and nginx hashes it
    so that all requests of one user reach the same Synapse worker.
    """


@command.command()
@click.option(
    "--synapse-url",
    "synapse_urls",
    metavar="URL",
    multiple=True,
    type=_parsed_by(parse_synapse_url),
    default=DEFAULTS.synapse_urls,
    show_default=True,
    envvar="WHOAMI_ROUTER_SYNAPSE_URL",
    show_envvar=True,
    help="Where to ask whoami: http://host:port or unix:/path. Give it several times (in the "
    "environment: separated by spaces) and they are tried in turn.",
)
@_option(
    "listen",
    "ADDRESS",
    parse_listen,
    "Where nginx finds the service: host:port, unix:/path or fd:3 (an inherited socket).",
)
@_option("cache-size", "TOKENS", _count, "How many tokens to remember.")
@_option("cache-ttl", "SECONDS", _seconds, "How long to remember a token's owner.")
@_option("whoami-timeout", "SECONDS", _seconds, "How long Synapse may take to answer.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default=DEFAULTS.log_level,
    show_default=True,
    envvar="WHOAMI_ROUTER_LOG_LEVEL",
    show_envvar=True,
    help="At debug, every decision is logged (never a token).",
)
def serve(**options: Any) -> None:  # noqa: ANN401  (click passes each option by its name)
    """Run the service."""
    settings = Settings(**options)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    # Only ours: at debug level libraries quote requests, and with them tokens.
    logging.getLogger("whoami_router").setLevel(settings.log_level.upper())
    try:
        with open_listener(settings.listen) as listener:
            logger.info(
                "whoami-router %s listens on %s, asks Synapse at %s, remembers up to %d tokens",
                __version__,
                address_of(listener),
                " ".join(settings.synapse_urls),
                settings.cache_size,
            )
            # uvicorn shuts down in peace, then raises the signal again for this handler.
            for stop in (signal.SIGTERM, signal.SIGINT):
                signal.signal(stop, _exit)
            uvicorn.Server(uvicorn_config(settings)).run(sockets=[listener])
    except CannotListen as exc:
        raise click.ClickException(f"--listen: cannot listen on {settings.listen}: {exc}.") from exc


def _exit(*_: object) -> NoReturn:
    sys.exit(0)


def uvicorn_config(settings: Settings) -> uvicorn.Config:
    """Return how uvicorn runs the service."""
    return uvicorn.Config(
        create_app(settings),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,  # set up in serve
        access_log=False,  # nginx has one; a line per sync costs more than the answer
        proxy_headers=False,  # X-Forwarded-For is passed on, not believed: no work for each request
        server_header=False,
        date_header=False,
        # nginx keeps an idle connection to us for 60 s. Were ours shorter, uvicorn would close
        # connections in the moment nginx uses them.
        timeout_keep_alive=75,
    )


def main() -> NoReturn:
    """Run the command line; a mistake in it ends the program with one line."""
    try:
        sys.exit(command.main(prog_name="whoami-router", standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except click.ClickException as exc:
        # click's own way of showing it takes three lines.
        click.echo(f"whoami-router: {' '.join(exc.format_message().split())}", err=True)
        sys.exit(exc.exit_code)
    except click.Abort:
        sys.exit(130)
