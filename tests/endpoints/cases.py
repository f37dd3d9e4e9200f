"""Paths for each entry of our list of endpoints, and where each is to go."""

import json
import re
from pathlib import Path

from tests.endpoints.samples import samples

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
ENDPOINTS = json.loads((Path(__file__).parent / "synapse.json").read_text())["endpoints"]

# Where what the documentation groups goes, if it belongs to no stream.
GROUPS = {
    "Federation requests": "federation_reader",
    "Inbound federation transaction request": "federation_inbound",
    "Client API requests": "client_reader",
    "Admin API requests": "client_reader",
    "Encryption requests": "keys",
    "Registration/login requests": "login",
    "Event sending requests": "event_creator",
    "Pagination requests": "pagination",
    "Unstable MSC4140 support": "client_reader",
    "Stabilised Delegated Authentication support": "client_reader",
}
APPS = {"media_repository": "media", "user_dir": "user_directory"}
WITH_SSO = "only with SSO; one process for all SSO"
OF_A_ROOM = re.compile(r"/(rooms/\.\*/|summary/|room_summary/)")

# What follows where a pattern is open at its end, by the last name in it.
OPEN = {
    "redact": ["/$event", "/$event/1"],
    "send": ["/m.room.message/1"],
    "receipt": ["/m.read/$event"],
    "typing": ["/@alice:example.org"],
    "account_data": ["/m.direct"],
    "tags": ["", "/m.favourite"],
    "query": ["", "/example.org", "/example.org/ed25519:1"],
    "redirect": ["", "/oidc"],
    "pick_username": ["/account_details", "/check"],
}


def paths(pattern):
    """Return paths that the pattern is for, at least one for each version."""
    for path in samples(pattern):
        if path.endswith("/"):
            yield path + "x"
        elif pattern.endswith(("$", ")")):
            yield path
        else:
            for rest in OPEN.get(path.rpartition("/")[2], [""]):
                yield path + rest


def expected_pool(pattern, path, method):
    """Return the pool that the shipped files are to send this to, as the data has it."""
    entries = [endpoint for endpoint in ENDPOINTS if endpoint["pattern"] == pattern]
    streams = {entry["stream"] for entry in entries} - {None}
    if streams:
        [stream] = streams
        return stream
    apps = {entry["app"] for entry in entries} & APPS.keys()
    if apps:
        [app] = apps
        return APPS[app]
    [entry] = entries
    if entry["condition"] == WITH_SSO or method not in served_methods(entry):
        return "main"
    if entry["group"] == "Sync requests":
        return "sync" if "/rooms/" in path else "initial_sync"
    if entry["group"] == "Client API requests" and OF_A_ROOM.search(pattern):
        return "rooms"
    return GROUPS[entry["group"]]


def served_methods(entry):
    methods = entry.get("methods", METHODS)
    return {*methods, *["HEAD"] * ("GET" in methods)}


CASES = sorted(
    {(pattern, path) for pattern in (e["pattern"] for e in ENDPOINTS) for path in paths(pattern)}
)
