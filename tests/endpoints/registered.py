"""Prints, as JSON, which paths each of Synapse's applications answers, and to which methods.

Run by Synapse's Python, which has none of ours. It asks Synapse's own generate_workers_map, and
adds what that leaves out: the admin API, media, the server's keys, and what is no servlet.

What is off until configured is included. Whether it is on is the deployer's business, and a path
that is not on is answered the same by every process.
"""

# ruff: noqa: E402 (what Synapse imports must be there before Synapse is)

import json
import logging
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from types import ModuleType
from typing import Any

# OpenID Connect and SAML have paths also where their libraries are not installed.
sys.modules["saml2"] = sys.modules["saml2.metadata"] = ModuleType("saml2.metadata")

import attr
from synapse._scripts.generate_workers_map import (
    EnumerationResource,
    MockHomeserver,
    get_registered_paths_for_hs,
)
from synapse.config.homeserver import HomeServerConfig
from synapse.config.workers import WriterLocations
from synapse.rest import admin
from synapse.rest.client import media
from synapse.rest.key.v2 import LocalKey
from synapse.rest.media.media_repository_resource import MediaRepositoryResource
from synapse.rest.synapse.client import build_synapse_client_resource_tree
from synapse.rest.well_known import well_known_resource
from twisted.web.resource import Resource

VERSION = version("matrix-synapse")
METHODS = ("DELETE", "GET", "POST", "PUT")

# Who is not the writer of the stream answers these with 500: Synapse has an assertion there, or an
# exception, where for other streams it asks the writer itself. Nothing that is registered tells.
WRITERS_ONLY = {
    "typing": {"RoomTypingRestServlet": {"PUT"}},
    "to_device": {"SendToDeviceRestServlet": {"PUT"}},
    "receipts": {"ReceiptRestServlet": {"POST"}, "ReadMarkerRestServlet": {"POST"}},
    "push_rules": {"PushRuleRestServlet": {"DELETE", "PUT"}},
    "thread_subscriptions": {"ThreadSubscriptionsRestServlet": {"DELETE", "PUT"}},
    "quarantined_media_changes": {
        "QuarantineMediaByID": {"POST"},
        "QuarantineMediaByUser": {"POST"},
        "QuarantineMediaInRoom": {"POST"},
        "UnquarantineMediaByID": {"POST"},
    },
}

# Whoever gets a request that writes to these asks the writer.
PASSED_ON = {"account_data", "device_lists", "events", "presence"}

# Accounts are Synapse's own, or those of Matrix Authentication Service: each has paths that the
# other has not.
ACCOUNTS: tuple[Mapping[str, Any], ...] = (
    {
        "cas_config": {"enabled": True, "server_url": "https://cas.example.org"},
        "login_via_existing_session": {"enabled": True},
        "refreshable_access_token_lifetime": "5m",
    },
    {
        "matrix_authentication_service": {"enabled": True, "secret": "secret"},
        "password_config": {"enabled": False},
    },
)

# Path -> method -> the name of the class that answers.
Registered = defaultdict[str, dict[str, str]]


def configuration(directory: str, app: str | None, accounts: Mapping[str, Any]) -> HomeServerConfig:
    """Return a configuration with everything on that has paths of its own.

    ``app`` is None for the main process.
    """
    settings = {
        "server_name": "example.org",
        "report_stats": False,
        "signing_key": f"ed25519 a {'A' * 43}",
        "macaroon_secret_key": "secret",
        "form_secret": "secret",
        "registration_shared_secret": "secret",
        "media_store_path": directory,
        "database": {"name": "sqlite3", "args": {"database": ":memory:"}},
        "trusted_key_servers": [],
        "instance_map": {"main": {"host": "localhost", "port": 1}},
        "federation_whitelist_endpoint_enabled": True,
        "retention": {"enabled": True},
        **accounts,
    }
    if app:
        settings |= {"worker_app": app, "worker_name": "worker"}
    if app == "synapse.app.generic_worker":
        settings |= {"enable_media_repo": False}
    config = HomeServerConfig()
    config.parse_config_dict(settings, "", "")
    config.oidc.oidc_providers = (object(),)
    config.saml2.saml2_enabled, config.saml2.saml2_sp_config = True, object()
    for name, value in vars(config.experimental).items():
        if value is False:
            setattr(config.experimental, name, True)
    return config


def registered(app: str | None) -> Registered:
    """Return all that ``app`` answers."""
    found: Registered = defaultdict(dict)
    for accounts in ACCOUNTS:
        with tempfile.TemporaryDirectory() as directory:
            config = configuration(directory, app, accounts)
            for path, method, name in _registered(config, app):
                found[path][method] = name
    return found


def _registered(config: HomeServerConfig, app: str | None) -> Iterator[tuple[str, str, str]]:
    server = MockHomeserver(config, app)
    # Else the libraries would be loaded.
    server._oidc_handler = server._saml_handler = object()
    server.setup()
    servlets = EnumerationResource(is_worker=app is not None)
    servlets.registrations |= get_registered_paths_for_hs(server)
    LocalKey(server).register(servlets)
    admin.register_servlets(server, servlets)
    if config.media.can_load_media_repo:
        admin.register_servlets_for_media_repo(server, servlets)
        media.register_servlets(server, servlets)
        MediaRepositoryResource.register_servlets(servlets, server)
    for (method, path), description in servlets.registrations.items():
        yield path, method, description.servlet_class.__name__
    for path, resource in build_synapse_client_resource_tree(server).items():
        yield from _resources(path, resource)
    yield from _resources("/.well-known", well_known_resource(server))


def _resources(path: str, resource: Resource) -> Iterator[tuple[str, str, str]]:
    for method in METHODS:
        if hasattr(resource, f"_async_render_{method}") or hasattr(resource, f"render_{method}"):
            yield f"^{re.escape(path)}$", method, type(resource).__name__
    for name, child in resource.children.items():
        yield from _resources(f"{path}/{name.decode()}", child)


def _without(found: Registered, others: Iterable[Registered]) -> Registered:
    rest: Registered = defaultdict(dict)
    for path, by_method in found.items():
        for method, name in by_method.items():
            if not any(method in other[path] for other in others):
                rest[path][method] = name
    return rest


def _writers_only(found: Registered, servlets: Mapping[str, set[str]]) -> Registered:
    names = {name for by_method in found.values() for name in by_method.values()}
    if missing := servlets.keys() - names:
        sys.exit(f"WRITERS_ONLY: Synapse {VERSION} has no {', '.join(sorted(missing))}")
    only: Registered = defaultdict(dict)
    for path, by_method in found.items():
        for method, name in by_method.items():
            if method in servlets.get(name, ()):
                only[path][method] = name
    return only


def _methods(found: Registered) -> dict[str, list[str]]:
    return {path: sorted(found[path]) for path in sorted(found) if found[path]}


def main() -> None:
    """Print it all.

    ``media_repository`` is what that adds to a generic worker, and ``writers`` what no process but
    the stream's writer answers.
    """
    logging.disable()  # Synapse tells at length that this is no way to run it
    streams = {stream.name for stream in attr.fields(WriterLocations)}
    if unknown := streams ^ PASSED_ON ^ WRITERS_ONLY.keys():
        sys.exit(f"Synapse {VERSION} has another list of streams: see {', '.join(sorted(unknown))}")
    homeserver = registered(None)
    generic_worker = registered("synapse.app.generic_worker")
    media_repository = registered("synapse.app.media_repository")
    writers = {
        stream: _writers_only(homeserver, servlets) for stream, servlets in WRITERS_ONLY.items()
    }
    json.dump(
        {
            "version": VERSION,
            "generic_worker": _methods(_without(generic_worker, writers.values())),
            "writers": {stream: _methods(found) for stream, found in writers.items()},
            "media_repository": _methods(_without(media_repository, [generic_worker])),
            "homeserver": _methods(homeserver),
        },
        sys.stdout,
        indent=1,
    )


if __name__ == "__main__":
    main()
