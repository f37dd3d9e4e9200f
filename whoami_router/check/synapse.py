"""Looks whether Synapse answers, at each URL by itself."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from whoami_router.check.findings import Finding, note, ok, quoted, wrong
from whoami_router.check.http_get import Answer, NoAnswer, Reason, get
from whoami_router.settings import Tcp, Unix

PART = "synapse"

_PATH = "/_matrix/client/v3/account/whoami"
_LISTENER = "of a listener with the resource `client` (`listeners` in homeserver.yaml)"

# What a homeserver says to a question without a token.
_NO_TOKEN = ("M_MISSING_TOKEN", "M_UNKNOWN_TOKEN")

# Such a server between us and Synapse names itself instead.
_PROXIES = ("nginx", "openresty", "haproxy", "caddy", "apache", "traefik", "envoy", "cloudflare")

_REMEDIES = {
    Reason.MISSING: f"start Synapse, or give the path {_LISTENER}",
    Reason.NO_SOCKET: f"give the path {_LISTENER}",
    Reason.FORBIDDEN: "let this user connect: `mode: 666` in Synapse's listener, and a directory "
    "that the user may enter",
    Reason.REFUSED: f"start Synapse, or give the address {_LISTENER}",
    Reason.UNKNOWN_HOST: "correct the name, or make it known (/etc/hosts, DNS)",
    Reason.UNREACHABLE: f"look at the network between here and there, or give the address "
    f"{_LISTENER}",
    Reason.LATE: "see in Synapse's log what keeps it busy; another --synapse-url is asked "
    "meanwhile, and --whoami-timeout is how long all of them have together",
    Reason.CLOSED: f"give the address {_LISTENER}, and no TLS",
    Reason.NOT_HTTP: f"give the address {_LISTENER}, and no TLS",
}


@dataclass(frozen=True, slots=True)
class Looked:
    """What was found at a URL, and whether it is a Synapse that can be asked."""

    url: str
    finding: Finding
    usable: bool


def look(urls: Sequence[str], *, timeout: float) -> Iterator[Looked]:
    """Yield what is at each URL.

    ``timeout`` is --whoami-timeout, in seconds: a running router gives each URL its share.
    """
    for url in urls:
        try:
            answer = get(address(url), _PATH, timeout=timeout / len(urls))
        except NoAnswer as exc:
            what = f"{url}: {exc}"
            if exc.reason is Reason.LATE and len(urls) > 1:
                what += ", its share of --whoami-timeout"
            yield Looked(url, wrong(PART, what, _REMEDIES[exc.reason]), usable=False)
        else:
            problem = _not_synapse(answer)
            if problem is None:
                yield Looked(url, _synapse(url, answer), usable=True)
            else:
                what, remedy = problem
                yield Looked(url, wrong(PART, f"{url}: {what}", remedy), usable=False)


def address(url: str) -> Tcp | Unix:
    """Return where a --synapse-url is."""
    if url.startswith("unix:"):
        return Unix(Path(url.removeprefix("unix:")))
    host, colon, port = url.removeprefix("http://").rpartition(":")
    if not (colon and port.isdigit()):  # [::1] has a colon, too
        host, port = url.removeprefix("http://"), "80"
    return Tcp(host.strip("[]"), int(port))


def _synapse(url: str, answer: Answer) -> Finding:
    server = answer.headers.get("server", "")
    if server.lower().startswith(_PROXIES):
        return note(
            PART,
            f"{url}: Synapse answers through a proxy ({quoted(server)}), which may limit rates, "
            "and may hide clients' addresses from Synapse",
            f"give the address {_LISTENER}, if it can be reached",
        )
    version = f" ({quoted(server)})" if server.startswith("Synapse/") else ""
    return ok(PART, f"{url}: Synapse can be asked{version}")


def _not_synapse(answer: Answer) -> tuple[str, str] | None:
    """Return what is wrong with an answer to whoami without a token, and the remedy."""
    status = answer.status
    code = _errcode(answer.body)
    elsewhere = f"give the address {_LISTENER}"
    if status == HTTPStatus.UNAUTHORIZED and code in _NO_TOKEN:
        return None
    if code == "M_UNRECOGNIZED":
        return (
            "is a Synapse that knows no whoami at this listener",
            f"{elsewhere}, of the main process or of a generic worker",
        )
    if status in (
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    ):
        return (
            f"answered {status}, as a proxy does whose Synapse is away",
            f"start Synapse; better than a proxy's, {elsewhere}",
        )
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return (
            f"answered {status}: something limits rates, which whoami-router obeys for everybody",
            "have nothing that limits rates between whoami-router and Synapse",
        )
    if code is not None:
        return (
            f"answered {status} ({quoted(code)}) to a question without a token, and not 401",
            "see in Synapse's log why",
        )
    return (f"answered {status}, and not as Synapse does: another HTTP server", elsewhere)


def _errcode(body: bytes) -> str | None:
    """Return the error code in a Matrix answer, None if it is none."""
    try:
        code = json.loads(body)["errcode"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return code if isinstance(code, str) else None
