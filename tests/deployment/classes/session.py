"""A session with a client library: what was asked for, and the pool that was to serve it."""

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import aiohttp
import nio

from tests.stack.process import wait_until
from tests.stack.synapse import SERVER_NAME

V3 = "/_matrix/client/v3"
DEADLINE = 60
"""In seconds, for what Synapse's processes tell each other."""

# What nginx and Synapse log of a request that they have answered.
ROUTED = re.compile(r" pool=synapse_(\S+) upstream=(\S+) .* id=(\w+)$", re.MULTILINE)
ANSWERED = re.compile(r" synapse\.access\.http\.\S+ - \d+ - INFO - [A-Z]+-(\w+) - ")
SYNCED = re.compile(rf' {{@(\S+):{SERVER_NAME}}} Processed .* 200 "GET {V3}/sync[? ]')


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request that nio has no call for."""

    transport_response: aiohttp.ClientResponse
    body: Any


async def ask(device, method, path, body=None):
    """Send a request that nio has no call for."""
    response = await device.send(
        method,
        V3 + path,
        None if body is None else json.dumps(body),
        {"Authorization": f"Bearer {device.access_token}"},
    )
    return Answer(response, await response.json())


class Session:
    """What was asked for in a test, and what was to serve it."""

    def __init__(self, deployment):
        self._deployment = deployment
        self._pools = {}  # by the ID of the request
        self._sync_workers = defaultdict(set)  # by user and pool

    def __call__(self, pool, answer, *, status=200):
        """Check an answer that is to come from this pool; return it."""
        response = answer.transport_response
        assert response.status == status, answer
        assert status != 200 or not isinstance(answer, nio.ErrorResponse), answer
        # What goes by user has the debug headers, in the place of those of the server.
        id_, address = map(response.headers.get, ("X-Request-ID", "X-Upstream-Address"))
        assert id_ or address
        if id_:
            self._pools[id_] = pool
        if address:
            assert address in self._deployment.upstreams[f"synapse_{pool}"]
        if pool in {"sync", "initial_sync"} and status == 200:
            route = self._deployment.route(response)
            assert route.source in {"whoami", "cache"}
            self._sync_workers[route.identifier, pool].add(route.worker)
        return answer

    def seen_by_nginx(self):
        """Return the pool, and the address, that nginx sent each request to."""
        found = ROUTED.findall(self._deployment.nginx.log_text())
        return {id_: (pool, address) for pool, address, id_ in found if id_ in self._pools}

    def see_that_each_pool_served_its_own(self):
        """See in nginx's log where each request went, and in Synapse's that it was answered."""
        wait_until(lambda: len(self.seen_by_nginx()) == len(self._pools), "nginx's log is written")
        seen = self.seen_by_nginx()
        assert {id_: pool for id_, (pool, _) in seen.items()} == self._pools

        main, workers = self._deployment.main, self._deployment.every_class
        process_at = {worker.address: worker for worker in self._deployment.workers.values()}
        process_at |= dict.fromkeys(main.addresses, main)
        process_at |= dict.fromkeys(workers.addresses.values(), workers)
        for process in set(process_at.values()):
            here = {id_ for id_, (_, address) in seen.items() if process_at[address] is process}
            wait_until(
                lambda process=process, here=here: (
                    here <= set(ANSWERED.findall(process.log_text()))
                ),
                f"the log of {process.name} is written",
            )

    def see_that_all_syncs_of_a_user_had_one_worker(self):
        """See it by the responses, and in the workers' own logs."""
        assert all(len(workers) == 1 for workers in self._sync_workers.values())
        users = {user for user, _ in self._sync_workers}
        expected = defaultdict(set)
        for (user, _), workers in self._sync_workers.items():
            expected[user] |= workers

        def served():
            found = defaultdict(set)
            for name, worker in self._deployment.workers.items():
                for user in users.intersection(SYNCED.findall(worker.log_text())):
                    found[user].add(name)
            return found

        wait_until(
            lambda: all(workers <= served()[user] for user, workers in expected.items()),
            "the logs of the workers are written",
        )
        assert served() == expected
