"""The cache in which nginx repeats the router's answers: whose they are, and where it is."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from whoami_router.check.findings import Finding, note, ok, wrong
from whoami_router.check.nginx.asking import Asking
from whoami_router.check.nginx.samples import SYNC
from whoami_router.check.nginx.site import PART, Sample, Site, Walk, depends_on, seconds
from whoami_router.nginx_conf import Directive, Location
from whoami_router.nginx_maps import Undecided

_KEY = 'proxy_cache_key "$edge_cache_query $http_authorization"; (of snippets/edge_cache.conf)'
_NOT = "proxy_no_cache $edge_cache_off; (of conf.d/edge_cache.conf)"

# Requests whose answers differ, and who gets another's if they are one to the cache.
_APART: tuple[tuple[str, Sample, Sample], ...] = (
    ("users share one answer", SYNC.with_token("a"), SYNC.with_token("b")),
    (
        "clients that send their token in the query share one answer",
        SYNC.with_query("access_token=a"),
        SYNC.with_query("access_token=b"),
    ),
    (
        "clients that send their token in an encoded parameter share one answer",
        SYNC.with_query("access%5Ftoken=a"),
        SYNC.with_query("access%5Ftoken=b"),
    ),
    (
        "the users of an application service share one answer",
        SYNC.with_token("s").with_query("user_id=@bob:h"),
        SYNC.with_token("s").with_query("user_id=@carol:h"),
    ),
    (
        "the users of an application service that it names in an encoded parameter share one",
        SYNC.with_token("s").with_query("%75ser_id=@bob:h"),
        SYNC.with_token("s").with_query("%75ser_id=@carol:h"),
    ),
    (
        "the users of an application service with its token in the query share one answer",
        SYNC.with_query("access_token=s&user_id=@bob:h"),
        SYNC.with_query("access_token=s&user_id=@carol:h"),
    ),
)
# Hardly any lock can be open sooner: nginx looks every half second.
_SHORT_LOCK = 0.1


def look(site: Site, asking: Asking) -> Iterator[Finding]:
    """Yield what is right and wrong about the edge cache, if there is one."""
    location = asking.location
    switched = location.inherited("proxy_cache")
    if not switched or switched[-1].args == ("off",):
        keys = list(location.directive.find("proxy_cache_key"))
        if keys and not switched:
            yield wrong(
                PART,
                "the edge cache is half there: without proxy_cache nothing is remembered",
                "proxy_cache whoami_router;",
                keys[-1].place,
            )
        return
    cache = switched[-1]
    findings = [
        *_whose(site, location, cache),
        *_remembered(location, cache),
        *_held_up(location, cache),
        *_where(site, cache),
        *_descriptors(site, location),
    ]
    if all(one.status != "wrong" for one in findings):
        yield ok(PART, f"the edge cache keeps answers apart (at {cache.place})")
    yield from findings


# Whose answer it is.


def _whose(site: Site, location: Location, cache: Directive) -> Iterator[Finding]:
    keys = location.inherited("proxy_cache_key")
    template = keys[-1].args[0] if keys else "$scheme$proxy_host$request_uri"
    place = keys[-1].place if keys else cache.place
    no_cache = [word for one in location.inherited("proxy_no_cache") for word in one.args]
    try:
        kept = [
            (what, _answer(site, location, one, template, no_cache))
            for what, one, other in _APART
            if _answer(site, location, one, template, no_cache)
            == _answer(site, location, other, template, no_cache)
        ]
        shared = [what for what, key in kept if key is not None]
        without = _answer(site, location, SYNC, template, no_cache) is not None
        known = _answer(site, location, SYNC.with_token("a"), template, no_cache) is not None
    except Undecided:
        yield note(PART, "whose answers are kept apart cannot be told", None, place)
        return
    if shared:
        remedy = _KEY
        if depends_on(site, template, "edge_cache_query"):
            remedy = "the maps of $edge_cache_query as conf.d/edge_cache.conf has them"
        if depends_on(site, template, "arg_access_token"):
            remedy += "; $arg_access_token is empty here"
        if not no_cache:
            remedy += f", and {_NOT}"
        yield wrong(PART, f"{shared[0]}: the same worker for all of them", remedy, place)
    if without:
        yield wrong(PART, "answers to requests without a token are remembered", _NOT, place)
    if not known:
        yield wrong(PART, "nothing is ever remembered", _NOT, place)


def _answer(
    site: Site, location: Location, sample: Sample, template: str, no_cache: Sequence[str]
) -> str | None:
    """Return the key under which the answer is remembered, None if it is not; or Undecided."""
    server = location.server
    assert server is not None  # noqa: S101  (who is asked is in one)
    walk = Walk(site, server, sample, "")
    walk.enter(location)
    key = walk.text(template)
    return key if all(walk.text(word) in ("", "0") for word in no_cache) else None


# What it is good for.


def _remembered(location: Location, cache: Directive) -> Iterator[Finding]:
    def words(name: str) -> tuple[str, ...]:
        found = location.inherited(name)
        return tuple(word.lower() for one in found for word in one.args)

    if words("proxy_buffering") == ("off",):
        yield wrong(
            PART, "nothing is remembered without buffering", "proxy_buffering on;", cache.place
        )
    ignored = location.inherited("proxy_ignore_headers")
    if "x-accel-expires" in words("proxy_ignore_headers"):
        yield wrong(
            PART,
            "fallbacks are repeated, too: nginx is told not to look at what whoami-router says",
            "delete X-Accel-Expires from the line",
            ignored[-1].place,
        )
    if "updating" not in words("proxy_cache_use_stale"):
        yield wrong(
            PART,
            "while whoami-router is away, known users lose their worker",
            "proxy_cache_use_stale updating;",
            cache.place,
        )
    if words("proxy_cache_background_update") != ("on",):
        yield wrong(
            PART,
            "a whoami-router that hangs holds up a sync of each user every minute",
            "proxy_cache_background_update on;",
            cache.place,
        )


def _held_up(location: Location, cache: Directive) -> Iterator[Finding]:
    lock = location.inherited("proxy_cache_lock")
    if not lock or lock[-1].args != ("on",):
        yield note(
            PART,
            "requests of one token at the same time each ask whoami-router",
            "proxy_cache_lock on;",
            cache.place,
        )
        return
    timeout = location.inherited("proxy_cache_lock_timeout")
    wait = seconds(timeout[-1].args[0]) if timeout and timeout[-1].args else None
    if wait is None or wait > _SHORT_LOCK:
        yield wrong(
            PART,
            "requests of one token wait for each other in steps of half a second",
            "proxy_cache_lock_timeout 10ms;",
            timeout[-1].place if timeout else lock[-1].place,
        )


# Where it is kept.


def _where(site: Site, cache: Directive) -> Iterator[Finding]:
    path = next(
        (
            one
            for one in site.configuration.http.find("proxy_cache_path")
            if any(word.startswith(f"keys_zone={cache.args[0]}:") for word in one.args)
        ),
        None,
    )
    if path is None:
        yield wrong(
            PART,
            f"no proxy_cache_path has the zone {cache.args[0]}",
            "include conf.d/edge_cache.conf; in http",
            cache.place,
        )
        return
    if "use_temp_path=off" not in path.args:
        yield wrong(
            PART,
            "tokens in clear are written to another directory first",
            "use_temp_path=off",
            path.place,
        )
    kind = _file_system(path.args[0])
    if kind not in (None, "tmpfs", "ramfs"):
        yield wrong(
            PART,
            f"tokens in clear are written to a disk: {path.args[0]} is on {kind}",
            "proxy_cache_path /dev/shm/whoami_router ...",
            path.place,
        )
    elif kind is None:
        yield note(
            PART,
            f"whether {path.args[0]} is in memory cannot be told from here: tokens in clear are "
            "written to it",
            "a tmpfs, for example /dev/shm/whoami_router",
            path.place,
        )


def _file_system(name: str) -> str | None:
    """Return the kind of file system that a path is on, None if that is unknown."""
    place = Path(os.path.abspath(name))  # noqa: PTH100  (resolve() follows links)
    try:
        mounts = Path("/proc/mounts").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    points = {fields[1]: fields[2] for line in mounts if len(fields := line.split()) > 2}  # noqa: PLR2004
    if not place.parent.is_dir():
        return None  # it is not this machine's
    return next((points[str(one)] for one in (place, *place.parents) if str(one) in points), None)


def _descriptors(site: Site, location: Location) -> Iterator[Finding]:
    files = location.inherited("open_file_cache")
    most = next(
        (
            int(word[4:])
            for one in files
            for word in one.args
            if word[:4] == "max=" and word[4:].isdigit()
        ),
        None,
    )
    if most is None:
        return
    limit = _number(site, None, "worker_rlimit_nofile")
    connections = _number(site, "events", "worker_connections") or 512
    if limit is None:
        yield wrong(
            PART,
            f"nginx keeps up to {most} files open, and without descriptors it fails requests",
            f"worker_rlimit_nofile {most + connections + 4000}; at the top of nginx.conf",
            files[-1].place,
        )
    elif most + connections > limit:
        yield wrong(
            PART,
            f"{most} files and {connections} connections are more than the {limit} descriptors "
            "that a worker may have: nginx fails requests",
            f"worker_rlimit_nofile {most + connections + 4000};",
            files[-1].place,
        )


def _number(site: Site, block: str | None, name: str) -> int | None:
    directives = site.configuration.directives
    if block is not None:
        directives = tuple(
            child for one in directives if one.name == block for child in one.children
        )
    found = [one.args[0] for one in directives if one.name == name and one.args]
    return int(found[-1]) if found and found[-1].isdigit() else None
