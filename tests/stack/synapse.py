"""Synapse: its main process and its workers, and what they are told."""

import base64
import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.stack import postgres
from tests.stack.postgres import Postgres
from tests.stack.process import DidNotHappen, Process, accepts
from tests.stack.redis import Redis

SERVER_NAME = "example.org"

# Synapse has an environment of its own, so that its pins do not constrain ours. The Makefile
# makes it; which version is in synapse-requirements.txt.
PYTHON = Path(
    os.environ.get("SYNAPSE_PYTHON", Path(__file__).parents[2] / ".venv-synapse/bin/python")
)

# Tests do in seconds what people do in days.
_UNLIMITED = {"per_second": 10_000, "burst_count": 10_000}


class Bridge:
    """An application service, which acts as any user ``@bridge_...`` with its one token.

    Synapse sends it nothing: it has no URL.
    """

    LOCALPART = "bridge"

    def __init__(self, directory: Path) -> None:
        self.token = secrets.token_hex()
        self.registration = directory / "bridge.yaml"
        _write(
            self.registration,
            {
                "id": "bridge",
                "url": None,
                "as_token": self.token,
                "hs_token": secrets.token_hex(),
                "sender_localpart": self.LOCALPART,
                "rate_limited": False,
                "namespaces": {
                    "users": [{"exclusive": True, "regex": rf"@bridge_.*:{re.escape(SERVER_NAME)}"}]
                },
            },
        )


class SharedConfiguration:
    """What all processes of one Synapse are told, in a file of its own.

    ``settings`` are added to what is there, or replace it.
    """

    def __init__(
        self,
        directory: Path,
        database: Postgres,
        redis: Redis,
        bridge: Bridge,
        settings: Mapping[str, Any],
    ) -> None:
        if not PYTHON.exists():
            raise DidNotHappen(f"there is no Synapse at {PYTHON} (SYNAPSE_PYTHON names another)")
        self.directory = directory
        self.path = directory / "homeserver.yaml"
        self.registration_secret = secrets.token_hex()
        signing_key = directory / "signing.key"
        seed = base64.b64encode(secrets.token_bytes(32)).decode().rstrip("=")
        signing_key.write_text(f"ed25519 demo {seed}\n")
        _write(
            self.path,
            {
                "server_name": SERVER_NAME,
                "signing_key_path": str(signing_key),
                "macaroon_secret_key": secrets.token_hex(),
                "form_secret": secrets.token_hex(),
                "registration_shared_secret": self.registration_secret,
                "worker_replication_secret": secrets.token_hex(),
                "media_store_path": str(directory / "media"),
                "database": {
                    "name": "psycopg2",
                    "args": {
                        "host": str(database.directory),
                        "user": postgres.USER,
                        "dbname": postgres.DATABASE,
                        "cp_min": 1,
                        "cp_max": 5,
                    },
                },
                "redis": {"enabled": True, "path": str(redis.path)},
                "instance_map": {"main": {"path": str(replication_socket(directory, "main"))}},
                "app_service_config_files": [str(bridge.registration)],
                # Every kind of token that Synapse issues by itself.
                "allow_guest_access": True,
                "refreshable_access_token_lifetime": "5m",
                "bcrypt_rounds": 4,  # passwords that are not worth a good hash
                "rc_message": _UNLIMITED,
                "rc_registration": _UNLIMITED,
                "rc_login": dict.fromkeys(("address", "account", "failed_attempts"), _UNLIMITED),
                # Nothing that leaves this machine, and nothing that makes work of its own.
                "report_stats": False,
                "trusted_key_servers": [],
                "federation_domain_whitelist": [],
                "send_federation": False,
                "url_preview_enabled": False,
                "presence": {"enabled": False},
                "stats": {"enabled": False},
                **settings,
            },
        )


class Synapse(Process):
    """One process of Synapse, answering clients at each of ``addresses``.

    An address is ``host:port`` or ``unix:/path``.
    """

    def __init__(
        self,
        app: str,
        name: str,
        addresses: Sequence[str],
        *,
        shared: SharedConfiguration,
        own: Mapping[str, Any],
    ) -> None:
        self.addresses = tuple(addresses)
        configuration = shared.directory / f"{name}.yaml"
        _write(configuration, own)
        super().__init__(
            f"Synapse {name}",
            [PYTHON, "-m", app, "-c", shared.path, "-c", configuration],
            shared.directory / f"{name}.log",
            ready=lambda: all(accepts(address) for address in self.addresses),
            seconds=180,  # of which the main process takes some to make its tables
        )


class Main(Synapse):
    """The main process, which the workers depend on."""

    def __init__(self, shared: SharedConfiguration, addresses: Sequence[str]) -> None:
        replication = _replication_listener(shared.directory, "main")
        super().__init__(
            "synapse.app.homeserver",
            "main",
            addresses,
            shared=shared,
            own={
                "listeners": [
                    *(_client_listener(address, "federation") for address in addresses),
                    replication,
                ]
            },
        )


class Worker(Synapse):
    """A generic worker; one that ``writes`` is asked to by others, so these can reach it."""

    def __init__(
        self, shared: SharedConfiguration, name: str, address: str, *, writes: bool = False
    ) -> None:
        self.address = address
        listeners = [_client_listener(address)]
        if writes:
            listeners.append(_replication_listener(shared.directory, name))
        super().__init__(
            "synapse.app.generic_worker",
            name,
            [address],
            shared=shared,
            own={
                "worker_app": "synapse.app.generic_worker",
                "worker_name": name,
                "worker_listeners": listeners,
            },
        )


STREAMS = (
    "account_data",
    "device_lists",
    "presence",
    "push_rules",
    "quarantined_media_changes",
    "receipts",
    "thread_subscriptions",
    "to_device",
    "typing",
)
"""The streams whose writer may be a worker, but for that of events."""

_MEDIA = ("media", "quarantined_media_changes")


def every_stream_has_a_writer(directory: Path) -> dict[str, Any]:
    """Return what all processes are told if each stream's writer is a worker of its name."""
    return {
        "stream_writers": {stream: stream for stream in STREAMS},
        "instance_map": {
            name: {"path": str(replication_socket(directory, name))} for name in ("main", *STREAMS)
        },
        "enable_media_repo": False,
        "media_instance_running_background_jobs": "media",
        "update_user_directory_from_worker": "user_directory",
    }


# Synapse's own starter, without its first step: it would see to the tables, which the main process
# does at the same time.
_FORK = """
import sys, types
nothing = types.SimpleNamespace(main=lambda: None)
sys.modules["synapse._scripts.update_synapse_database"] = nothing
from synapse.app import complement_fork_starter
complement_fork_starter.main()
"""


class ForkedWorkers(Process):
    """A worker for each name, which listens at its address; forked from one process.

    They share what they have imported: twenty start in the time of three. Only for workers that no
    test stops.
    """

    def __init__(self, shared: SharedConfiguration, addresses: Mapping[str, str]) -> None:
        self.addresses = addresses
        arguments: list[str | Path] = []
        for name, address in addresses.items():
            listeners = [_client_listener(address, "federation", *["media"] * (name in _MEDIA))]
            if name in STREAMS:
                listeners.append(_replication_listener(shared.directory, name))
            configuration = shared.directory / f"{name}.yaml"
            _write(
                configuration,
                {
                    "worker_app": "synapse.app.generic_worker",
                    "worker_name": name,
                    "worker_listeners": listeners,
                    "enable_media_repo": name in _MEDIA,
                },
            )
            arguments += ["--", "synapse.app.generic_worker"]
            arguments += ["-c", shared.path, "-c", configuration]
        super().__init__(
            "Synapse's workers",
            [PYTHON, "-c", _FORK, shared.path, *arguments],
            shared.directory / "workers.log",
            ready=lambda: all(map(accepts, addresses.values())),
            seconds=180,
        )


def replication_socket(directory: Path, name: str) -> Path:
    """Return where a process listens for the others, for ``instance_map``."""
    return directory / ("replication.sock" if name == "main" else f"{name}-replication.sock")


def _replication_listener(directory: Path, name: str) -> dict[str, Any]:
    return {
        "type": "http",
        "path": str(replication_socket(directory, name)),
        "resources": [{"names": ["replication"]}],
    }


def _client_listener(address: str, *more: str) -> dict[str, Any]:
    if address.startswith("unix:"):
        place: dict[str, Any] = {"path": address.removeprefix("unix:")}
    else:
        host, _, port = address.rpartition(":")
        place = {"port": int(port), "bind_addresses": [host]}
    return {
        "type": "http",
        **place,
        "x_forwarded": True,  # (!) or every device has the address of nginx, or of the router
        "request_id_header": "X-Request-ID",
        "resources": [{"names": ["client", "metrics", *more]}],
    }


def _write(path: Path, configuration: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(configuration, indent=2))  # JSON is YAML, too
