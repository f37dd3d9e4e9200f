"""What whoami-router is told of a request: the headers that the auth location sends."""

from collections.abc import Iterator

from whoami_router.check.findings import Finding, note, wrong
from whoami_router.check.nginx.site import PART, Site, depends_on, value
from whoami_router.nginx_conf import Location


def look(site: Site, location: Location) -> Iterator[Finding]:
    """Yield what is wrong about the headers that an auth location sends."""
    headers = _Headers(location)
    if headers.value("content-length") != "" and not any(location.inherited("proxy_set_body")):
        yield wrong(
            PART,
            "a POST announces a body that nginx does not send, and the next question on that "
            "connection fails",
            'proxy_set_header Content-Length "";',
            headers.place("content-length"),
        )
    if not headers.passes("authorization"):
        yield wrong(
            PART,
            "whoami-router is not told the client's Authorization: no token in a header is found",
            "proxy_set_header Authorization $http_authorization;",
            headers.place("authorization"),
        )
    uri = headers.value("x-original-uri") or headers.value("x-forwarded-uri")
    if uri is None or not depends_on(site, uri, "request_uri"):
        yield wrong(
            PART,
            "tokens in the query are not found: in the auth location $uri and $args are its own",
            "proxy_set_header X-Original-URI $request_uri;",
            headers.place("x-original-uri"),
        )
    yield from _about_the_client(headers)
    if headers.passes_all:
        yield note(
            PART,
            "cookies and all other headers of the client reach whoami-router, to no purpose",
            "proxy_pass_request_headers off;",
            location.directive.place,
        )


class _Headers:
    """What a location sends; one proxy_set_header drops all that would be inherited."""

    def __init__(self, location: Location) -> None:
        self._place = location.directive.place
        self._lines = {
            one.args[0].lower(): one for one in location.inherited("proxy_set_header") if one.args
        }
        self.passes_all = value(location, "proxy_pass_request_headers", "on") == "on"

    def value(self, name: str) -> str | None:
        """Return what the header is set to, None if it is not set."""
        return self._lines[name].args[-1] if name in self._lines else None

    def passes(self, name: str) -> bool:
        """Return whether the client's own header is passed on."""
        value = self.value(name)
        if value is None:
            return self.passes_all
        return value == f"$http_{name.replace('-', '_')}"

    def place(self, name: str) -> str:
        """Return where the header is set, or else the location."""
        return self._lines[name].place if name in self._lines else self._place


def _about_the_client(headers: _Headers) -> Iterator[Finding]:
    address = headers.value("x-forwarded-for")
    if address is None and not headers.passes_all:
        yield wrong(
            PART,
            "Synapse records whoami-router's address as that of the user's device",
            "proxy_set_header X-Forwarded-For $remote_addr;",
            headers.place("x-forwarded-for"),
        )
    elif address is None or "$proxy_add_x_forwarded_for" in address:
        yield note(
            PART,
            "a client chooses, by a header of its own, the address that Synapse records for it",
            "proxy_set_header X-Forwarded-For $remote_addr;",
            headers.place("x-forwarded-for"),
        )
    if not headers.passes("user-agent"):
        yield wrong(
            PART,
            "Synapse records whoami-router as the user's device (User-Agent)",
            "proxy_set_header User-Agent $http_user_agent;",
            headers.place("user-agent"),
        )
