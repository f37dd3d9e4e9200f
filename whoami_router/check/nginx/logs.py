"""Whether nginx's logs show tokens."""

from collections.abc import Callable, Iterator
from contextlib import suppress

from whoami_router.check.findings import Finding, note, wrong
from whoami_router.check.nginx.samples import SYNC
from whoami_router.check.nginx.site import PART, Sample, Site, Walk
from whoami_router.nginx_conf import Location
from whoami_router.nginx_maps import Undecided

_SECRET = "very-secret"  # noqa: S105  (the sample's token)

_COMBINED = '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent'
_REMEDY = (
    "log_format no_query '$remote_addr [$time_local] \"$request_method $uri\" $status'; and "
    "access_log ... no_query; (or with all of nginx/ the format routing)"
)

# What a client may send, and which tokens a log shows that shows this one's.
_SHOWN: tuple[tuple[Sample, str, Callable[..., Finding]], ...] = (
    (SYNC.with_token(_SECRET), "every access token", wrong),
    (SYNC.with_query(f"access_token={_SECRET}"), "access tokens in queries", wrong),
    # A client that encodes what it should not: to nginx it is in the path.
    (
        Sample("a sync", "GET", f"/_matrix/client/v3/sync%3Faccess_token={_SECRET}"),
        "access tokens in queries that a client encodes by mistake",
        note,
    ),
)


def look(site: Site, location: Location) -> Iterator[Finding]:
    """Yield which logs of a location show tokens."""
    lines = location.inherited("access_log")
    for line in lines:
        if line.args[:1] == ("off",):
            continue
        # The second word is the format, unless it is a parameter.
        name = next((word for word in line.args[1:2] if "=" not in word), "combined")
        for shown, say in _shown(site, location, name):
            what = f"this log shows {shown}: whoever reads it can use the account"
            yield say(PART, what, _REMEDY, line.place)
    for shown, _ in () if lines else _shown(site, location, "combined"):
        what = f"no access_log is set, and nginx's own shows {shown}"
        yield note(PART, what, _REMEDY, location.directive.place)
    yield from _errors(location)


def _errors(location: Location) -> Iterator[Finding]:
    lines = location.inherited("error_log")
    level = lines[-1].args[1] if lines and len(lines[-1].args) > 1 else "error"
    if level != "emerg":
        yield note(
            PART,
            f"at level {level} nginx quotes the request line of a request that failed, and so "
            "the token of a client that sends it in the query",
            "error_log stderr emerg;",
            lines[-1].place if lines else location.directive.place,
        )


def _shown(site: Site, location: Location, name: str) -> list[tuple[str, Callable[..., Finding]]]:
    """Return which tokens a format shows first, and how bad that is; nothing if it shows none."""
    formats = [one for one in site.configuration.http.find("log_format") if one.args[:1] == (name,)]
    if name == "combined":
        template = _COMBINED
    elif formats:
        template = "".join(formats[-1].args[1:])
    else:
        return []
    server = location.server
    assert server is not None  # noqa: S101  (those who ask are in one)
    for sample, shown, say in _SHOWN:
        with suppress(Undecided):
            if _SECRET in Walk(site, server, sample, "alice").text(template):
                return [(shown, say)]
    return []
