"""What happens while whoami-router does not answer: requests go on, and soon."""

import re
from collections.abc import Iterator

from whoami_router.check.findings import Finding, note, wrong
from whoami_router.check.nginx.site import PART, Site, place, seconds, value
from whoami_router.nginx_conf import Directive, Location

# So long a router that hangs may hold a request up.
_LONGEST_WAIT = 10
_DEFAULT_WAIT = "60s"

# What nginx answers itself when a router is away, and what something else in its place would.
_MUST_FAIL_OPEN = ("400", "401", "403", "404", "429", "500", "502", "503", "504")

_OPEN = "error_page 400 401 403 404 429 500 502 503 504 = @whoami_router_unavailable;"


def look(site: Site, location: Location, *, whoami_timeout: float) -> Iterator[Finding]:
    """Yield what is wrong about an auth location when nobody answers it."""
    yield from _errors(site, location)
    yield from _waits(location, whoami_timeout)


def _errors(site: Site, location: Location) -> Iterator[Finding]:
    if value(location, "proxy_intercept_errors", "off") != "on":
        yield wrong(
            PART,
            "an error of whoami-router, or of what is in its place, becomes the client's: a 401 "
            "logs it out",
            "proxy_intercept_errors on;",
            place(location, "proxy_intercept_errors", location.directive.place),
        )
    pages = location.inherited("error_page")
    codes: dict[str, Directive] = {}
    for page in pages:
        for code in page.args:
            if code.isdigit():
                codes.setdefault(code, page)
    missing = [code for code in _MUST_FAIL_OPEN if code not in codes]
    if missing:
        yield wrong(
            PART,
            "an error of whoami-router, or its absence, is an error for the client: no error_page "
            f"for {', '.join(missing)}",
            f"{_OPEN}, and location @whoami_router_unavailable {{ return 204; }}",
            pages[0].place if pages else location.directive.place,
        )
    for page in {
        id(codes[code]): codes[code] for code in _MUST_FAIL_OPEN if code in codes
    }.values():
        problem = _not_open(site, location, page)
        if problem is not None:
            what, remedy = problem
            yield wrong(PART, what, remedy, page.place)
    if "408" in codes:
        yield note(
            PART,
            "nginx drops the client's connection on a 408, intercepted or not",
            "take 408 out of the line",
            codes["408"].place,
        )


def _not_open(site: Site, location: Location, page: Directive) -> tuple[str, str] | None:
    """Return why an ``error_page`` does not end in a 2xx, and the remedy; None if it does."""
    *before, target = page.args
    response = next((one for one in before if one.startswith("=")), None)
    if response is not None and re.fullmatch("=2[0-9]{2}", response):
        return None
    if response is None:
        return (
            "without `=` the client gets the error nevertheless",
            f"error_page ... = {target};",
        )
    server = location.server
    if not target.startswith("@") or server is None:
        return (
            f"whether {target} answers 2xx cannot be told: nothing else lets the request go on",
            f"{_OPEN}, and location @whoami_router_unavailable {{ return 204; }}",
        )
    named = site.named(server, target)
    returns = [] if named is None else [one.args[0] for one in named.directive.find("return")]
    if named is None or not any(re.fullmatch("2[0-9]{2}", status) for status in returns):
        return (
            f"{target} does not answer 204: when whoami-router is away the client gets an error",
            f"location {target} {{ return 204; }}",
        )
    return None


def _waits(location: Location, whoami_timeout: float) -> Iterator[Finding]:
    reading = seconds(value(location, "proxy_read_timeout", _DEFAULT_WAIT))
    connecting = seconds(value(location, "proxy_connect_timeout", _DEFAULT_WAIT))
    if reading is not None and reading > _LONGEST_WAIT:
        yield wrong(
            PART,
            f"a whoami-router that hangs holds each request up for {reading:g} s",
            f"proxy_read_timeout {max(3, int(whoami_timeout) + 1)}s;",
            place(location, "proxy_read_timeout", location.directive.place),
        )
    if reading is not None and reading <= whoami_timeout:
        yield wrong(
            PART,
            f"nginx waits {reading:g} s, no longer than whoami-router for Synapse "
            f"(--whoami-timeout {whoami_timeout:g}): its fallbacks come too late",
            f"proxy_read_timeout {int(whoami_timeout) + 1}s;",
            place(location, "proxy_read_timeout", location.directive.place),
        )
    if connecting is not None and connecting > _LONGEST_WAIT:
        yield wrong(
            PART,
            f"a whoami-router that takes no connections holds each request up for {connecting:g} s",
            "proxy_connect_timeout 1s;",
            place(location, "proxy_connect_timeout", location.directive.place),
        )
