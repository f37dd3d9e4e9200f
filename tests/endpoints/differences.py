"""How our list of endpoints differs from what Synapse registers.

Both are expressions for paths, worded differently. So each of Synapse's is turned into requests,
and our list is asked about those.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from tests.endpoints.samples import samples


class Request(NamedTuple):
    """What a client may ask for."""

    method: str
    path: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An entry of our list: requests, and who may answer them.

    Without ``methods`` it is all that there are; ``stream`` names the stream whose writer is meant.
    """

    pattern: str
    app: str = "generic_worker"
    stream: str | None = None
    methods: frozenset[str] | None = None

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> Self:
        """Return the endpoint that an entry in JSON describes."""
        # A user_dir is a generic worker that bears its old name.
        app = entry["app"].replace("user_dir", "generic_worker")
        methods = frozenset(entry["methods"]) if "methods" in entry else None
        return cls(entry["pattern"], app, entry["stream"], methods)

    def matches(self, request: Request) -> bool:
        """Return whether the request is one of these."""
        if self.methods is not None and request.method not in self.methods:
            return False
        return re.search(self.pattern, request.path) is not None

    def __str__(self) -> str:
        return f"{self.pattern}  ({f'{self.stream} writer' if self.stream else self.app})"


class Registered:
    """What one kind of process answers."""

    def __init__(self, methods_by_pattern: Mapping[str, Iterable[str]]) -> None:
        self._requests = {
            pattern: [Request(method, path) for path in samples(pattern) for method in methods]
            for pattern, methods in methods_by_pattern.items()
        }
        self._answered = frozenset(request for _, request in self)

    def __iter__(self) -> Iterator[tuple[str, Request]]:
        """Yield each request, with the expression that it came from."""
        for pattern, requests in self._requests.items():
            for request in requests:
                yield pattern, request

    def __contains__(self, request: object) -> bool:
        return request in self._answered


class Differences:
    """Our list, compared with what was registered. Each property is lines for people, sorted."""

    def __init__(self, data: Mapping[str, Any], registered: Mapping[str, Any]) -> None:
        self._routed = [Endpoint.from_entry(entry) for entry in data["endpoints"]]
        self._not_routed = [Endpoint(entry["pattern"]) for entry in data["not_routed"]]
        self._worker = Registered(registered["generic_worker"])
        self._media = Registered(registered["media_repository"])
        self._writers = {
            stream: Registered(found) for stream, found in registered["writers"].items()
        }
        self._main = Registered(registered["homeserver"])
        self._versions = (data["synapse_version"], registered["version"])

    def by_heading(self) -> dict[str, list[str]]:
        """Return the lines of each kind of difference that there is, under its heading."""
        listed = {
            "The list is for another version": self.version,
            "Synapse has them, the list lacks them": self.lacking,
            "The list has them, Synapse no longer": self.gone,
            "The list sends them to any worker, which does not answer them": self.methods,
        }
        return {heading: lines for heading, lines in listed.items() if lines}

    @property
    def version(self) -> list[str]:
        ours, installed = self._versions
        return [] if ours == installed else [f"{ours}, and installed is {installed}"]

    @property
    def lacking(self) -> list[str]:
        """What is registered, and is neither routed nor said not to be."""
        wanted = {
            "generic_worker": (
                self._worker,
                [*self._of_app("generic_worker"), *self._not_routed],
            ),
            "media_repository": (self._media, self._of_app("media_repository")),
            **{
                f"{stream} writer": (found, self._of_stream(stream))
                for stream, found in self._writers.items()
            },
        }
        return [
            f"{line}  ({who})"
            for who, (registered, endpoints) in wanted.items()
            for line in _lines(
                (pattern, request)
                for pattern, request in registered
                if not any(endpoint.matches(request) for endpoint in endpoints)
            )
        ]

    @property
    def gone(self) -> list[str]:
        """What matches nothing that is registered."""
        return sorted(
            str(endpoint)
            for endpoint in (*self._routed, *self._not_routed)
            if not any(endpoint.matches(request) for _, request in self._answered_by(endpoint))
        )

    @property
    def methods(self) -> list[str]:
        """What any worker would be sent, and only main or the stream's writer answers."""
        return _lines(
            (endpoint.pattern, request)
            for endpoint in self._of_app("generic_worker")
            if endpoint.stream is None
            for _, request in self._main
            if endpoint.matches(request) and request not in self._worker
        )

    def _of_app(self, app: str) -> Sequence[Endpoint]:
        return [endpoint for endpoint in self._routed if endpoint.app == app]

    def _of_stream(self, stream: str) -> Sequence[Endpoint]:
        return [endpoint for endpoint in self._routed if endpoint.stream == stream]

    def _answered_by(self, endpoint: Endpoint) -> Iterator[tuple[str, Request]]:
        yield from self._media if endpoint.app == "media_repository" else self._worker
        if endpoint.stream in self._writers:
            yield from self._writers[endpoint.stream]


def _lines(found: Iterable[tuple[str, Request]]) -> list[str]:
    """Return a line for each expression: the methods, and one of the paths."""
    requests = defaultdict(list)
    for pattern, request in found:
        requests[pattern].append(request)
    return [
        f"{pattern}  {' '.join(sorted({request.method for request in requests[pattern]}))}"
        f", as for {requests[pattern][0].path}"
        for pattern in sorted(requests)
    ]
