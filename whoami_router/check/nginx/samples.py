"""Requests that are walked through a configuration, to see where it has them go."""

from whoami_router.check.nginx.site import Sample

SYNC = Sample("a sync", "GET", "/_matrix/client/v3/sync?since=s1&timeout=30000")
_INITIAL = Sample("an initial sync", "GET", "/_matrix/client/v3/sync")
_SLIDING = Sample(
    "a sliding sync",
    "POST",
    "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?pos=1",
)
SYNCS = (SYNC, _INITIAL, _SLIDING)

# What else is a sync, of which a location may be made.
ALL_SYNCS = (
    *SYNCS,
    Sample("an old client's sync", "GET", "/_matrix/client/r0/sync?since=s1"),
    Sample("an old client's sync", "GET", "/_matrix/client/r0/events?from=s1"),
    Sample("an old client's sync", "GET", "/_matrix/client/v3/events?from=s1"),
)
# Other requests, to try which location they have.
OTHER_PATHS = (
    "/",
    "/_matrix/client/versions",
    "/_matrix/client/v3/account/whoami",
    "/_matrix/client/v3/keys/query",
    "/_matrix/client/v3/pushrules/",
    "/_matrix/client/v3/rooms/!r:h/messages",
    "/_matrix/client/v3/rooms/!r:h/state",
    "/_matrix/client/v3/user/@u:h/account_data/x",
    "/_matrix/client/v3/presence/@u:h/status",
    "/_matrix/client/v3/profile/@u:h",
)
