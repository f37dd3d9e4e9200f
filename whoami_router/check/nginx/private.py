"""Who may use what Synapse has for administrators, where nginx decides it."""

from collections.abc import Iterator, Sequence

from whoami_router.check.findings import Finding, note, wrong
from whoami_router.check.nginx.site import PART, Arrival, Sample, Site
from whoami_router.nginx_conf import Directive, Location
from whoami_router.nginx_maps import Undecided

_ADMIN = "/_synapse/admin/v1/users"
# To nginx's $uri it is /_matrix/x. To Synapse it is still below /_synapse/metrics.
_DOTS = "/_synapse/metrics/../../_matrix/x"

_STRANGER = "192.0.2.1"
_HERE = "127.0.0.1"
_FORWARDED = {
    "x-forwarded-for": _STRANGER,
    "forwarded": f"for={_STRANGER}",
    "x-real-ip": _STRANGER,
    "via": "1.1 proxy",
}

_PUBLIC = ("/_matrix/key/v2/server", "/_synapse/client/x", "/.well-known/matrix/x")

_FILE = "as conf.d/clients.conf has it (whoami-router nginx-files)"


def look(site: Site, askers: Sequence[Location]) -> Iterator[Finding]:
    """Yield what strangers reach that is not for them, and what is for them and out of reach."""
    for server in {id(one.server): one.server for one in askers}.values():
        assert server is not None  # noqa: S101  (those who ask are in one)
        try:
            yield from _of_server(site, server)
        except Undecided:
            continue


def _of_server(site: Site, server: Directive) -> Iterator[Finding]:
    admin = site.walk(server, Sample("", "GET", _ADMIN, address=_STRANGER))
    if _is_open(admin):
        yield note(
            PART,
            "everyone reaches Synapse's administration (/_synapse/admin) and metrics",
            f"$not_public {_FILE}, and if ($not_public) {{ return 403; }}",
            server.place,
        )
    if admin.status is None:
        return  # by other means than are known here
    if _is_open(site.walk(server, Sample("", "GET", _DOTS, address=_STRANGER))):
        yield wrong(
            PART,
            f"to nginx {_DOTS} is public, and to Synapse it is its metrics",
            f"$public_path {_FILE}, by the path as the client wrote it",
            server.place,
        )
    for name, value in _FORWARDED.items():
        here = Sample("", "GET", _ADMIN, {name: value}, _HERE)
        if not _is_open(site.walk(server, here)):
            continue
        yield note(
            PART,
            "a proxy on this machine makes local clients of everybody, who then reach "
            f"/_synapse/admin ({name})",
            f"$other_proxy {_FILE}",
            server.place,
        )
        break
    for path in _PUBLIC:
        if site.walk(server, Sample("", "GET", path, address=_STRANGER)).status == admin.status:
            yield note(
                PART,
                f"clients and other servers get {admin.status} for {path}",
                f"$public_path {_FILE}",
                server.place,
            )


def _is_open(arrival: Arrival) -> bool:
    """Return whether Synapse is asked, and no `deny` or password may be in the way."""
    if arrival.target is None or arrival.location is None:
        return False
    return not any(
        any(arrival.location.inherited(name)) for name in ("deny", "auth_basic", "auth_request")
    )
