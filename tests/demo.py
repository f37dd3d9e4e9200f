"""Shows it all at work: a real Synapse, real users, and where each of their syncs goes.

``make demo`` runs it until Ctrl-C, ``make demo ARGS=--once`` until the table is complete. The
status is 0 if every user had one worker in each pool while the router was up.
"""

import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import click
import httpx

from tests.stack.deployment import Deployment, Route, deployed
from tests.stack.matrix import PASSWORD, Device, Matrix
from tests.stack.process import DidNotHappen

USERS = ("alice", "bob", "carol", "dave", "erin")
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Client:
    """A device of the demo, and what is special about its token."""

    user: str
    name: str
    token: str
    device: Device

    @property
    def title(self) -> tuple[str, str, str]:
        """The first columns of a row about it."""
        return self.user, self.name, self.token


@dataclass
class Verdict:
    """What the demo is to show: each user on one worker of each pool, and no failed sync."""

    workers: dict[str, dict[str, set[str]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(set))
    )
    syncs: int = 0
    failures: list[str] = field(default_factory=list)

    def note(self, client: Client, route: Route) -> None:
        """Count a sync that was made while the router was up."""
        self.syncs += 1
        self.workers[client.user][route.pool].add(route.worker)
        if route.source not in ("whoami", "cache"):
            self.failures.append(f"{client.user}'s {client.name} went by {route.source}")

    def complaints(self) -> list[str]:
        """Return what is wrong, a line each."""
        return self.failures + [
            f"{user} was on several workers of {pool}: {', '.join(sorted(used))}"
            for user, pools in self.workers.items()
            for pool, used in pools.items()
            if len(used) > 1
        ]


class Demo:
    """The scenes, in the order in which they are shown."""

    def __init__(self, deployment: Deployment, matrix: Matrix) -> None:
        self._deployment = deployment
        self._matrix = matrix
        self._verdict = Verdict()
        self._clients: list[Client] = []

    def log_everyone_in(self) -> None:
        say("Registering users and logging them in")
        for user in USERS:
            self._matrix.register(user, secret=self._deployment.registration_secret)
            self._clients += self._log_in(user)
        guest = self._matrix.register_guest()
        for place, device in (("header", guest), ("query", guest.with_token_in_query())):
            client = Client(f"{guest.localpart} (guest)", "browser", f"guest's, in {place}", device)
            self._clients.append(client)

    def _log_in(self, user: str) -> Iterable[Client]:
        phone = self._matrix.log_in(user, device_id="phone")
        yield Client(user, "phone", "native, in header", phone)
        laptop = self._matrix.log_in(user, device_id="laptop")
        yield Client(user, "laptop", "native, in query", laptop.with_token_in_query())
        tablet = self._matrix.log_in(user, device_id="tablet", refreshable=True)
        yield Client(user, "tablet", "refreshable", tablet)
        watch = self._matrix.log_in(user, device_id="watch", refreshable=True)
        yield Client(user, "watch", "refreshed", self._matrix.refresh(watch))

    def show_where_syncs_go(self) -> None:
        print("\nWhich worker answers which sync:\n")
        rows = []
        for client in self._clients:
            if rows and client.user != rows[-1][0]:
                rows.append(())
            initial = self._matrix.sync(client.device)
            sliding = self._matrix.sliding_sync(client.device)
            routes = [
                self._route(client, response)
                for response in (
                    initial,
                    sliding,
                    self._matrix.sync(client.device, _json(initial)["next_batch"]),
                    self._matrix.sliding_sync(client.device, _json(sliding)["pos"]),
                )
            ]
            rows.append((*client.title, _sources(routes), *(route.worker for route in routes)))
        print_table(
            (
                ("", "", "", "", "initial", "", "incremental", ""),
                ("user", "device", "token", "source", *("/sync", "sliding sync") * 2),
            ),
            rows,
        )
        print(
            f"\n{len(USERS)} users and a guest, {self._verdict.syncs} syncs. "
            "Who is where, by user and not by token:\n"
        )
        for worker in self._deployment.workers:
            users = [
                user
                for user, pools in self._verdict.workers.items()
                if any(worker in used for used in pools.values())
            ]
            print(f"  {worker:<10} {', '.join(users)}")

    def show_what_a_crash_does(self) -> None:
        router = self._deployment.router
        mine = [client for client in self._clients if client.user == USERS[0]]
        since = _json(self._matrix.sync(mine[0].device))["next_batch"]

        print(f"\nwhoami-router is killed (process {router.pid}). {USERS[0]}'s next syncs:\n")
        router.kill()
        rows = []
        for client in mine:
            response = self._matrix.sync(client.device, since)
            if response.status_code != httpx.codes.OK:
                self._verdict.failures.append(
                    f"without the router {client.user}'s {client.name} got {response.status_code}"
                )
            route = self._deployment.route(response)
            rows.append((*client.title, response.status_code, route.source or "-", route.worker))
        headings = ("user", "device", "token", "status", "source", "worker")
        print_table([headings], rows)
        if not self._verdict.failures:
            print("\nEach succeeds. nginx goes by the token now, so a user may be on two workers.")

        router.start()
        print(f"\nIt runs again (process {router.pid}). The same syncs, twice each:\n")
        rows = []
        for client in mine:
            responses = [self._matrix.sync(client.device, since) for _ in range(2)]
            routes = [self._route(client, response) for response in responses]
            workers = ", ".join(dict.fromkeys(route.worker for route in routes))
            rows.append((*client.title, responses[0].status_code, _sources(routes), workers))
        print_table([headings], rows)

    def show_verdict(self) -> bool:
        """Print the outcome; return whether it is what the demo is to show."""
        complaints = self._verdict.complaints()
        if complaints:
            print("\nNot as promised:", *complaints, sep="\n  ")
            return False
        print("\nEvery user had one worker in each pool.")
        return True

    def show_how_to_try(self) -> None:
        deployment, token = self._deployment, self._clients[0].device.token
        nginx, router = deployment.nginx.url, deployment.router.address.removeprefix("unix:")
        sync = f"{nginx}/_matrix/client/v3/sync"
        headers = "curl -s -o /dev/null -D -"
        login = (
            f'{{"type": "m.login.password", "password": "{PASSWORD}", '
            f'"identifier": {{"type": "m.id.user", "user": "{USERS[0]}"}}}}'
        )
        print("\nIt stays up until Ctrl-C:\n")
        for name, address in (
            ("nginx, for clients", nginx),
            ("Synapse's main process", f"http://{deployment.main.addresses[0]}"),
            *((name, worker.address) for name, worker in deployment.workers.items()),
            ("whoami-router", deployment.router.address),
            ("logs", f"{deployment.directory}/*.log"),
        ):
            print(f"  {name:<22}  {address}")
        print(f"""
Where does {USERS[0]}'s phone go? (-D - prints the response's headers, among them X-User-Identifier,
X-User-Identifier-Source and X-Upstream-Address)

  {headers} -H 'Authorization: Bearer {token}' '{sync}?timeout=0'
  {headers} '{sync}?timeout=0&access_token={token}'

What does whoami-router say?

  curl -i --unix-socket {router} -H 'Authorization: Bearer {token}' http://localhost/resolve

Another device of {USERS[0]}'s (every password is "{PASSWORD}"):

  curl -s {nginx}/_matrix/client/v3/login -d '{login}'
""")

    def _route(self, client: Client, response: httpx.Response) -> Route:
        _json(response)
        route = self._deployment.route(response)
        self._verdict.note(client, route)
        return route


def _json(response: httpx.Response) -> dict[str, str]:
    if response.status_code != httpx.codes.OK:
        raise DidNotHappen(
            f"a sync was answered with {response.status_code}: {response.text[:500]}"
        )
    return response.json()


def _sources(routes: Iterable[Route]) -> str:
    """Return the sources in the order in which they came up."""
    return ", ".join(dict.fromkeys(str(route.source) for route in routes))


def print_table(headings: Sequence[Sequence[str]], rows: Iterable[Sequence[object]]) -> None:
    """Print the rows in aligned columns; an empty row is an empty line."""
    rule: list[str] = []
    lines = [*headings, rule, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*filter(None, lines), strict=True)]
    for line in lines:
        cells = ["-" * width for width in widths] if line is rule else line
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=False))
        print("  ".join(padded).rstrip())


STARTED = time.monotonic()


def say(what: str) -> None:
    """Print what is being done: the start takes its time."""
    print(f"[{time.monotonic() - STARTED:4.0f} s] {what} ...")


def interrupt(*_: object) -> NoReturn:
    """End the demo at the first signal; from then on everything is being stopped."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


@click.command()
@click.option("--once", is_flag=True, help="Stop everything once the tables are printed.")
def main(*, once: bool) -> None:
    """Show where real syncs of real users go, and what a crash of the router does."""
    sys.stdout.reconfigure(line_buffering=True)  # also into a pipe, while it is being watched
    for number in STOP_SIGNALS:
        signal.signal(number, interrupt)
    status = 1
    try:
        with deployed(lambda what: say(f"Starting {what}")) as deployment:
            with Matrix(deployment.nginx.url) as matrix:
                demo = Demo(deployment, matrix)
                demo.log_everyone_in()
                demo.show_where_syncs_go()
                demo.show_what_a_crash_does()
                status = 0 if demo.show_verdict() else 1
            try:
                if not once:
                    demo.show_how_to_try()
                    signal.pause()
            finally:
                say("Stopping everything")
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  (nobody reads it any more)
    except (DidNotHappen, httpx.HTTPError, OSError) as exc:
        print(f"\nThe demo failed: {exc}", *getattr(exc, "__notes__", ()), sep="\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
