"""Looks whether a running router answers, as nginx and a container's health check ask it."""

from collections.abc import Iterator

from whoami_router.check.findings import Finding, note, ok, quoted, wrong
from whoami_router.check.http_get import Answer, NoAnswer, Reason, get
from whoami_router.settings import Inherited, ListenAddress, Tcp, Unix

PART = "router"

# For so long nginx waits (proxy_read_timeout in snippets/whoami_router.conf).
_SECONDS = 3.0

_NO_CONTENT = 204
_UNAVAILABLE = 503

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (where to connect instead)

_ELSEWHERE = "stop what listens there, or give the address at which whoami-router listens"

_REMEDIES = {
    Reason.MISSING: "start whoami-router, or give the path of the socket at which it listens",
    Reason.NO_SOCKET: "remove the file and start whoami-router, or give the path of its socket",
    Reason.FORBIDDEN: "run this as a user that may connect (nginx's has to): the directory's group "
    "and mode decide",
    Reason.REFUSED: "start whoami-router, or give the address at which it listens",
    Reason.UNKNOWN_HOST: "correct the name, or make it known (/etc/hosts, DNS)",
    Reason.UNREACHABLE: "look at the network between here and there",
    Reason.LATE: "restart whoami-router, and see in its log what it does",
    Reason.CLOSED: _ELSEWHERE,
    Reason.NOT_HTTP: _ELSEWHERE,
}


class _Wrong(Exception):  # noqa: N818  (a finding, not an error of the program)
    """Ends the look at an address."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.what)
        self.finding = finding


def look(
    listen: ListenAddress,
    admin_listen: ListenAddress | None,
    *,
    ready: bool,
    timeout: float,
) -> Iterator[Finding]:
    """Yield whether a router answers nginx at ``listen``, and at ``admin_listen`` that it lives.

    With ``ready`` it is also asked whether it can ask Synapse, else nothing depends on Synapse.
    ``timeout`` is --whoami-timeout, in seconds.
    """
    place = connectable(listen)
    admin_place = connectable(admin_listen) if admin_listen is not None else place
    if place is None and (admin_listen is None or admin_place is None):
        yield wrong(PART, *_unknowable("--listen", listen))
        return
    if place is None:
        yield note(PART, *_unknowable("--listen", listen))
    if admin_place is None and admin_listen is not None:
        yield note(PART, *_unknowable("--admin-listen", admin_listen))
    try:
        if place is not None:
            yield _resolves(place)
        if admin_place is not None:
            yield _lives(admin_place, separate=admin_listen is not None)
            if ready:
                yield _ready(admin_place, timeout=timeout)
    except _Wrong as exc:
        yield exc.finding


def connectable(address: ListenAddress) -> Tcp | Unix | None:
    """Return where to connect for a service that listens there, None if that cannot be known."""
    match address:
        case Inherited() | Tcp(port=0):
            return None
        case Tcp(host, port):
            return Tcp(_WILDCARDS.get(host, host), port)
    return address


def resolve(
    address: Tcp | Unix, token: bytes, *, timeout: float, expected: str | None
) -> Iterator[Finding]:
    """Yield whom the router names for the token.

    ``timeout`` is --whoami-timeout, in seconds. ``expected`` is the identifier of the user that
    Synapse names, None if Synapse was not asked. No finding has the token in it.
    """
    headers = {"Authorization": b"Bearer " + token, "User-Agent": b"whoami-router check"}
    try:
        answer = _asked(address, "/resolve", headers, timeout=max(timeout + 1, _SECONDS))
    except _Wrong as exc:
        yield exc.finding
        return
    identifier = answer.headers.get("x-user-identifier")
    source = quoted(answer.headers.get("x-user-identifier-source", ""))
    match source:
        case "rejected":
            yield wrong(
                PART,
                "the router says that Synapse rejects the token",
                "see whether it asks the same Synapse; a rejection is remembered for "
                "--rejected-ttl seconds",
            )
        case "token" if identifier is not None and identifier == expected:
            yield note(
                PART,
                "the router goes by the name in the token: it is told to (--native-tokens=decode), "
                "or it could not ask Synapse",
                "if it is not told to, look at /ready and at the router's log",
            )
        case "fingerprint" | "token" | "stale" | "":
            yield wrong(
                PART,
                f"the router routes the token by its fallback (source {source or 'missing'}): it "
                "could not ask Synapse",
                "look at /ready and at the router's log",
            )
        case _ if identifier is None:
            yield wrong(PART, f"the router names nobody (source {source})", _ELSEWHERE)
        case _ if expected is not None and identifier != expected:
            yield wrong(
                PART,
                f"the router names {quoted(identifier)}, and Synapse {expected}",
                "give the router the --synapse-url of this Synapse",
            )
        case _:
            yield ok(PART, f"the token is {quoted(identifier)}'s there, too (source {source})")


def _unknowable(option: str, address: ListenAddress) -> tuple[str, str]:
    example = "127.0.0.1:9009" if option == "--listen" else "127.0.0.1:9011"
    return (
        f"{option} {address}: only the service itself knows where that is",
        f"give the address to connect to, for example {option} {example}",
    )


def _asked(
    address: Tcp | Unix, path: str, headers: dict[str, bytes] | None = None, *, timeout: float
) -> Answer:
    try:
        return get(address, path, headers, timeout=timeout)
    except NoAnswer as exc:
        raise _Wrong(wrong(PART, f"{address}: {exc}", _REMEDIES[exc.reason])) from exc


def _resolves(address: Tcp | Unix) -> Finding:
    answer = _asked(address, "/resolve", timeout=_SECONDS)
    source = answer.headers.get("x-user-identifier-source")
    if answer.status == _NO_CONTENT and source == "none":
        return ok(PART, f"{address}: whoami-router answers at /resolve")
    if _asked(address, "/health", timeout=_SECONDS).status == _NO_CONTENT:
        remedy = "give nginx, and --listen here, the address at which the service has /resolve"
        what = f"{address}: answers at /health, but not at /resolve: the place of --admin-listen"
        raise _Wrong(wrong(PART, what, remedy))
    what = f"{address}: answered {answer.status} at /resolve: another HTTP server"
    raise _Wrong(wrong(PART, what, _ELSEWHERE))


def _lives(address: Tcp | Unix, *, separate: bool) -> Finding:
    status = _asked(address, "/health", timeout=_SECONDS).status
    if status == _NO_CONTENT:
        return ok(PART, f"{address}: it lives (/health)")
    remedy = (
        "give the address of --admin-listen"
        if separate
        else "give --admin-listen as the service has it"
    )
    raise _Wrong(wrong(PART, f"{address}: answered {status} at /health", remedy))


def _ready(address: Tcp | Unix, *, timeout: float) -> Finding:
    # As long as it takes the service to find out that Synapse hangs, and a bit.
    answer = _asked(address, "/ready", timeout=max(timeout + 1, 10))
    if answer.status == _NO_CONTENT:
        return ok(PART, f"{address}: it can ask Synapse (/ready)")
    reason = quoted(answer.body.decode(errors="replace")) if answer.status == _UNAVAILABLE else ""
    return wrong(
        PART,
        f"{address}: /ready answers {answer.status}{': ' if reason else ''}{reason}",
        "see that the service's own --synapse-url is right, and that its user may connect",
    )
