"""Runs the service: uvicorn on its listeners, until a signal ends it."""

import asyncio
import dataclasses
import gc
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Literal, NoReturn

import uvicorn
from starlette.types import ASGIApp

from whoami_router import __version__, logs
from whoami_router.app import Application, create_app
from whoami_router.listener import CannotListen, Listener, open_listener
from whoami_router.protocol import Protocol
from whoami_router.settings import ListenAddress, Settings

logger = logging.getLogger(__name__)


def serve(settings: Settings) -> None:
    """Run the service until a signal ends it.

    Raises CannotListen, also when clients can no longer find the socket it listens on.
    """
    logs.configure(settings.log_level, settings.log_format, sys.stderr)
    # uvicorn shuts down in peace, then raises the signal again for this handler. Before a
    # listener opens: whoever sees it may send a signal at once, and its socket has to go.
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, _exit)
    same = settings.admin_listen == settings.listen
    if same and getattr(settings.listen, "port", None) != 0:  # of which there are two
        raise CannotListen(
            f"--admin-listen: {settings.listen} is that of --listen; leave the option out to have "
            "both in one place."
        )
    # What a terminal that closes sends: an end like the others.
    signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    with ExitStack() as stack:
        listener = stack.enter_context(_opened("--listen", settings.listen))
        admin = None
        if settings.admin_listen is not None:
            admin = stack.enter_context(_opened("--admin-listen", settings.admin_listen))
        _log_start(settings, listener, admin)
        _run(settings, listener, admin)


@contextmanager
def _opened(option: str, address: ListenAddress) -> Iterator[Listener]:
    with ExitStack() as stack:
        try:
            listener = stack.enter_context(open_listener(address))
        except CannotListen as exc:
            raise CannotListen(f"{option}: cannot listen on {address}: {exc}.") from exc
        yield listener


def _log_start(settings: Settings, listener: Listener, admin: Listener | None) -> None:
    chosen = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if field.name not in ("listen", "admin_listen", "synapse_urls")
    }
    logger.info(
        "listening",
        extra={
            "version": __version__,
            "listen": str(listener.address),
            "admin_listen": None if admin is None else str(admin.address),
            "synapse_url": " ".join(settings.synapse_urls),
            **chosen,
        },
    )


def _run(settings: Settings, listener: Listener, admin: Listener | None) -> None:
    app = create_app(settings)
    # All that is there by now stays: the garbage collector need not look through it, tens of
    # milliseconds long, again and again while new tokens come in.
    gc.collect()
    gc.freeze()
    _Server(app, listener, admin).run(sockets=[listener.socket])
    for option, each in (("--listen", listener), ("--admin-listen", admin)):
        if each is not None and not each.reachable():
            raise CannotListen(
                f"{option}: the socket was removed or replaced in use; start the service again."
            )


def _exit(number: int, _: FrameType | None) -> NoReturn:
    logger.info("stopped", extra={"signal": signal.Signals(number).name})
    sys.exit(0)


class _Server(uvicorn.Server):
    """uvicorn's, with a second one for administrators beside it if they have a listener.

    It also ends when clients cannot find a socket any more. A new process is found at the socket
    that it makes; this one never again.
    """

    def __init__(self, app: Application, listener: Listener, admin: Listener | None) -> None:
        super().__init__(uvicorn_config(app))
        self._listeners = [listener] if admin is None else [listener, admin]
        self._admin = None if admin is None else _AdminServer(app, admin)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections."""
        await super().startup(sockets)
        if self._admin is not None:
            self._admin.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what was asked, and close all connections."""
        try:
            if self._admin is not None:
                await self._admin.stop()
        finally:
            await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End, and at a second signal in haste."""
        super().handle_exit(sig, frame)
        if self._admin is not None:
            self._admin.force_exit = self.force_exit

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end; uvicorn asks every 0.1 s."""
        if counter % 10 == 0 and not all(each.reachable() for each in self._listeners):
            return True
        return await super().on_tick(counter)


class _AdminServer(uvicorn.Server):
    """What administrators ask, as long as the other server runs, which has the signals."""

    def __init__(self, app: Application, listener: Listener) -> None:
        super().__init__(uvicorn_config(app.admin, lifespan="off"))
        self._socket = listener.socket
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Accept connections."""
        self._running = asyncio.create_task(self.serve([self._socket]))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the other server."""
        yield

    async def stop(self) -> None:
        """Answer what was asked, and close all connections."""
        self.should_exit = True
        if self._running is not None:
            await self._running


def uvicorn_config(app: ASGIApp, *, lifespan: Literal["on", "off"] = "on") -> uvicorn.Config:
    """Return how uvicorn runs the service."""
    return uvicorn.Config(
        app,
        loop="uvloop",  # asyncio's own takes a fifth more CPU for each request
        http=Protocol,  # on httptools; h11 takes more than three times as much
        ws="none",
        lifespan=lifespan,
        log_config=None,  # see logs
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
