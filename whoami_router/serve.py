"""Runs the service: uvicorn on the listener, until a signal ends it."""

import gc
import logging
import signal
import sys
from typing import NoReturn

import uvicorn

from whoami_router import __version__
from whoami_router.app import create_app
from whoami_router.listener import CannotListen, Listener, open_listener
from whoami_router.protocol import Protocol
from whoami_router.settings import Settings

logger = logging.getLogger(__name__)


def serve(settings: Settings) -> None:
    """Run the service until a signal ends it; raises CannotListen."""
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
        raise CannotListen(f"--listen: cannot listen on {settings.listen}: {exc}.") from exc


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
