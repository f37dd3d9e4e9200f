"""The command: options to Settings to uvicorn."""

import gc
import logging
import math
import re
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import click
import uvicorn

from whoami_router import __version__
from whoami_router.app import create_app
from whoami_router.listener import CannotListen, Listener, open_listener
from whoami_router.protocol import Protocol
from whoami_router.settings import Settings, parse_listen, parse_synapse_url

logger = logging.getLogger("whoami_router")

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

DEFAULTS = Settings()


def _count(text: str) -> int:
    if not re.fullmatch("0*[1-9][0-9]{0,11}", text):
        raise ValueError("needs a whole number of 1 or more, for example 100000")
    return int(text)


def _whole_seconds(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ValueError("needs a whole number of seconds, 0 or more, for example 60")
    return int(text)


def _seconds(text: str) -> float:
    seconds = _number(text)
    if not seconds > 0:
        raise ValueError("needs a number of seconds above 0, for example 2.5")
    return seconds


def _seconds_or_none(text: str) -> float:
    seconds = _number(text)
    if not seconds >= 0:
        raise ValueError("needs a number of seconds, 0 or more, for example 30")
    return seconds


def _number(text: str) -> float:
    """Return the number, or one that no comparison admits."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _parsed_by(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Return ``parse``, its ValueError turned into click's, with the value in front."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as exc:
            raise click.BadParameter(f"{text!r} {exc}.") from exc

    return convert


def _option(
    name: str, metavar: str | None, type_: click.Choice[str] | Callable[[str], object], help_: str
) -> Callable[[F], F]:
    """Return an option with the environment variable and default that go with its name."""
    field = name.replace("-", "_")
    return click.option(
        f"--{name}",
        metavar=metavar,
        type=type_ if isinstance(type_, click.Choice) else _parsed_by(type_),
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
@_option(
    "stale-ttl",
    "SECONDS",
    _seconds_or_none,
    "How much longer to go by it while Synapse is unavailable.",
)
@_option("rejected-size", "TOKENS", _count, "How many rejected tokens to remember.")
@_option("rejected-ttl", "SECONDS", _seconds_or_none, "How long to remember a rejected token.")
@_option("whoami-timeout", "SECONDS", _seconds, "How long Synapse may take to answer.")
@_option("max-lookups", "LOOKUPS", _count, "How many tokens to ask Synapse about at once.")
@_option(
    "edge-ttl",
    "SECONDS",
    _whole_seconds,
    "After how long nginx asks again, if its edge cache is on (0: it remembers nothing new).",
)
@_option(
    "native-tokens",
    None,
    click.Choice(["whoami", "decode"]),
    "With decode, Synapse is not asked about tokens that it issued itself: they name the user.",
)
@_option(
    "log-level",
    None,
    click.Choice(["debug", "info", "warning", "error"]),
    "At debug, every decision is logged (never a token).",
)
def serve(**options: Any) -> None:  # noqa: ANN401  (click passes each option by its name)
    """Run the service."""
    settings = Settings(**options)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    # Only ours: at debug level libraries quote requests, and with them tokens.
    logging.getLogger("whoami_router").setLevel(settings.log_level.upper())
    # Its warnings are one for each request that is no HTTP: nginx sends none, and nobody else
    # shall fill the disk.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    # uvicorn shuts down in peace, then raises the signal again for this handler. Before the
    # listener opens: whoever sees it may send a signal at once, and its socket has to go.
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, _exit)
    try:
        with open_listener(settings.listen) as listener:
            logger.info(
                "whoami-router %s listens on %s, asks Synapse at %s, remembers up to %d tokens",
                __version__,
                listener.address,
                " ".join(settings.synapse_urls),
                settings.cache_size,
            )
            _run(settings, listener)
    except CannotListen as exc:
        raise click.ClickException(f"--listen: cannot listen on {settings.listen}: {exc}.") from exc


class _Server(uvicorn.Server):
    """uvicorn's, which also ends when clients cannot find its socket any more.

    A new process is found at the socket that it makes; this one never again.
    """

    def __init__(self, config: uvicorn.Config, listener: Listener) -> None:
        super().__init__(config)
        self._listener = listener

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end; uvicorn asks every 0.1 s."""
        if counter % 10 == 0 and not self._listener.reachable():
            return True
        return await super().on_tick(counter)


def _run(settings: Settings, listener: Listener) -> None:
    """Serve until a signal ends the program; raise CannotListen if clients are locked out."""
    config = uvicorn_config(settings)
    # All that is there by now stays: the garbage collector need not look through it, tens of
    # milliseconds long, again and again while new tokens come in.
    gc.collect()
    gc.freeze()
    _Server(config, listener).run(sockets=[listener.socket])
    if not listener.reachable():
        raise CannotListen("the socket was removed or replaced in use; start the service again")


def _exit(*_: object) -> NoReturn:
    sys.exit(0)


def uvicorn_config(settings: Settings) -> uvicorn.Config:
    """Return how uvicorn runs the service."""
    return uvicorn.Config(
        create_app(settings),
        loop="uvloop",  # asyncio's own takes a fifth more CPU for each request
        http=Protocol,  # on httptools; h11 takes more than three times as much
        ws="none",
        lifespan="on",
        log_config=None,  # set up in serve
        access_log=False,  # nginx has one; a line per sync costs more than the answer
        proxy_headers=False,  # X-Forwarded-For is passed on, not believed; a fifth again
        server_header=False,  # of no use to nginx
        date_header=False,
        # nginx keeps an idle connection to us for 60 s. Were ours shorter, uvicorn would close
        # connections in the moment nginx uses them.
        timeout_keep_alive=75,
        # As many as Linux admits by default. When all tokens are new nginx opens a connection for
        # each sync, and one that finds no room here is routed by its token.
        backlog=4096,
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
