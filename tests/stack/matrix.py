"""A small Matrix client: the calls that the tests and the demo make."""

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self
from urllib.parse import quote

import httpx

from tests.stack.process import DidNotHappen

PASSWORD = "down the rabbit hole"

_CLIENT = "/_matrix/client/v3"
_ADMIN = "/_synapse/admin"
_SLIDING_SYNC = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"


TOKENS: set[str] = set()
"""The token of every device that there was in this process."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device that is logged in, its token, and where in a request it puts the token.

    With ``names_user`` its requests say by a parameter who the user is, as those of an
    application service do.
    """

    user_id: str
    device_id: str
    token: str
    refresh_token: str | None = None
    token_in_query: bool = False

    def __post_init__(self) -> None:
        TOKENS.add(self.token)

    names_user: bool = False

    @property
    def localpart(self) -> str:
        """The user's name without the server's."""
        return self.user_id[1:].partition(":")[0]

    def with_token_in_query(self) -> Self:
        """Return the same device, putting its token into the query of its requests."""
        return replace(self, token_in_query=True)


class Matrix:
    """A client of the homeserver at ``url``; a context manager that closes its connections.

    What manages accounts raises if it fails. What syncs returns Synapse's response, whatever
    that is. Nothing waits for news. ``tokens`` holds every token that was issued here.
    """

    def __init__(self, url: str, *, source_address: str | None = None) -> None:
        self.tokens: list[str] = []
        self._http = httpx.Client(
            base_url=url,
            transport=httpx.HTTPTransport(local_address=source_address, trust_env=False),
            trust_env=False,  # no proxy: everything is on loopback
            timeout=60,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        device: Device | None = None,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Send one request, with the device's token where the device puts it."""
        params, headers = dict(params or {}), dict(headers or {})
        if device is not None and device.token_in_query:
            params["access_token"] = device.token
        elif device is not None:
            headers["Authorization"] = f"Bearer {device.token}"
        if device is not None and device.names_user:
            params["user_id"] = device.user_id
        return self._http.request(method, path, params=params, headers=headers, json=body)

    # Accounts.

    def register(self, localpart: str, *, secret: str, admin: bool = False) -> Device:
        """Make a user with the shared secret; return their first device."""
        path = f"{_ADMIN}/v1/register"
        nonce = self._call("GET", path)["nonce"]
        fields = (nonce, localpart, PASSWORD, "admin" if admin else "notadmin")
        mac = hmac.new(secret.encode(), "\0".join(fields).encode(), hashlib.sha1).hexdigest()
        return self._device(
            self._call(
                "POST",
                path,
                body={
                    "nonce": nonce,
                    "username": localpart,
                    "password": PASSWORD,
                    "admin": admin,
                    "mac": mac,
                },
            )
        )

    def register_guest(self) -> Device:
        """Make a guest, whose token is a macaroon."""
        return self._device(
            self._call("POST", f"{_CLIENT}/register", params={"kind": "guest"}, body={})
        )

    def log_in(
        self, localpart: str, *, device_id: str | None = None, refreshable: bool = False
    ) -> Device:
        """Return a device, by default a new one; its token can be refreshed if so wanted."""
        return self._device(
            self._call(
                "POST",
                f"{_CLIENT}/login",
                body={
                    "type": "m.login.password",
                    "identifier": {"type": "m.id.user", "user": localpart},
                    "password": PASSWORD,
                    "refresh_token": refreshable,
                    **({"device_id": device_id} if device_id else {}),
                },
            )
        )

    def log_in_as(self, user_id: str, *, admin: Device, seconds: float = 3600) -> Device:
        """Return a token for a user that an administrator made, valid for so many seconds."""
        valid_until_ms = int((time.time() + seconds) * 1000)
        path = f"{_ADMIN}/v1/users/{_quoted(user_id)}/login"
        made = self._call("POST", path, admin, body={"valid_until_ms": valid_until_ms})
        return self._device({"user_id": user_id, "device_id": "", **made})

    def refresh(self, device: Device) -> Device:
        """Return the same device with its next token."""
        refreshed = self._call(
            "POST", f"{_CLIENT}/refresh", body={"refresh_token": device.refresh_token}
        )
        self.tokens += [refreshed["access_token"], refreshed["refresh_token"]]
        return replace(
            device, token=refreshed["access_token"], refresh_token=refreshed["refresh_token"]
        )

    def log_out(self, device: Device) -> None:
        """End the device; its token is worthless from now on."""
        self._call("POST", f"{_CLIENT}/logout", device, body={})

    def register_bridged(self, localpart: str, *, token: str) -> Device:
        """Make a user with an application service's token; return the service as that user."""
        body = {
            "type": "m.login.application_service",
            "username": localpart,
            "inhibit_login": True,  # the user needs no token of its own
        }
        made = self._call("POST", f"{_CLIENT}/register", Device("", "", token), body=body)
        return Device(made["user_id"], "", token, names_user=True)

    def log_in_bridged(self, bridged: Device) -> Device:
        """Return a device of a bridged user, with a token of the user's own."""
        body = {
            "type": "m.login.application_service",
            "identifier": {"type": "m.id.user", "user": bridged.user_id},
        }
        bridge = Device("", "", bridged.token)
        return self._device(self._call("POST", f"{_CLIENT}/login", bridge, body=body))

    def provision(self, localpart: str, device_id: str, *, secret: str) -> str:
        """Make a user and a device as an authentication service does; return the user's ID."""
        service, path = Device("", "", secret), "/_synapse/mas"
        self._call("POST", f"{path}/provision_user", service, body={"localpart": localpart})
        body = {"localpart": localpart, "device_id": device_id}
        self._call("POST", f"{path}/upsert_device", service, body=body)
        query = f"{path}/query_user"
        return self._call("GET", query, service, params={"localpart": localpart})["user_id"]

    def withdraw(self, device: Device, *, secret: str) -> None:
        """End a device as an authentication service does."""
        body = {"localpart": device.localpart, "device_id": device.device_id}
        self._call("POST", "/_synapse/mas/delete_device", Device("", "", secret), body=body)

    def deactivate(self, user_id: str, *, admin: Device) -> None:
        """End an account for good."""
        self._call("POST", f"{_ADMIN}/v1/deactivate/{_quoted(user_id)}", admin, body={})

    def lock(self, user_id: str, *, admin: Device, locked: bool = True) -> None:
        """Keep a user out, until further notice."""
        self._call("PUT", f"{_ADMIN}/v2/users/{_quoted(user_id)}", admin, body={"locked": locked})

    def suspend(self, user_id: str, *, admin: Device) -> None:
        """Let a user read, and write no more."""
        self._call("PUT", f"{_ADMIN}/v1/suspend/{_quoted(user_id)}", admin, body={"suspend": True})

    def shadow_ban(self, user_id: str, *, admin: Device) -> None:
        """Let a user believe that others hear."""
        self._call("POST", f"{_ADMIN}/v1/users/{_quoted(user_id)}/shadow_ban", admin, body={})

    def create_room(self, device: Device) -> str:
        """Return the ID of a new room that the user is in."""
        return self._call("POST", f"{_CLIENT}/createRoom", device, body={})["room_id"]

    def connections(self, user_id: str, *, admin: Device) -> set[tuple[str, str]]:
        """Return the addresses and user agents that Synapse recorded for a user."""
        devices = self._call("GET", f"{_ADMIN}/v1/whois/{_quoted(user_id)}", admin)["devices"]
        return {
            (connection["ip"], connection["user_agent"])
            for device in devices.values()
            for session in device["sessions"]
            for connection in session["connections"]
        }

    def last_seen(self, device: Device, *, asking: Device) -> str | None:
        """Return the address in the device list that another device of the user reads."""
        path = f"{_CLIENT}/devices/{device.device_id}"
        return self._call("GET", path, asking)["last_seen_ip"]

    def last_seen_by_admin(self, device: Device, *, admin: Device) -> tuple[str | None, str | None]:
        """Return the address and the user agent in the device list of an administrator."""
        path = f"{_ADMIN}/v2/users/{_quoted(device.user_id)}/devices/{device.device_id}"
        found = self._call("GET", path, admin)
        return found["last_seen_ip"], found["last_seen_user_agent"]

    # Syncs.

    def sync(
        self,
        device: Device | None,
        since: str | None = None,
        *,
        full_state: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """An initial sync, or what is new since then."""
        params = {"timeout": "0"}
        if since is not None:
            params["since"] = since
        if full_state:
            params["full_state"] = "true"
        return self.request("GET", f"{_CLIENT}/sync", device, params=params, headers=headers)

    def sliding_sync(self, device: Device, pos: str | None = None) -> httpx.Response:
        """A simplified sliding sync (MSC4186), or what is new after ``pos``."""
        params = {"timeout": "0"}
        if pos is not None:
            params["pos"] = pos
        window = {"ranges": [[0, 9]], "required_state": [], "timeline_limit": 1}
        body = {"lists": {"all": window}}
        return self.request("POST", _SLIDING_SYNC, device, params=params, body=body)

    def events(self, device: Device, from_: str | None = None) -> httpx.Response:
        """The event stream of old, or what is new in it."""
        params = {"timeout": "0"}
        if from_ is not None:
            params["from"] = from_
        return self.request("GET", f"{_CLIENT}/events", device, params=params)

    def initial_sync(self, device: Device) -> httpx.Response:
        """The initial sync of old."""
        return self.request("GET", f"{_CLIENT}/initialSync", device)

    def room_initial_sync(self, device: Device, room_id: str) -> httpx.Response:
        """The initial sync of one room, of old."""
        return self.request("GET", f"{_CLIENT}/rooms/{room_id}/initialSync", device)

    def _call(
        self,
        method: str,
        path: str,
        device: Device | None = None,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> dict[str, Any]:
        response = self.request(method, path, device, params=params, body=body)
        if not response.is_success:
            raise DidNotHappen(f"{method} {path}: {response.status_code} {response.text}")
        return response.json() if response.content else {}

    def _device(self, session: Mapping[str, Any]) -> Device:
        device = Device(
            session["user_id"],
            session["device_id"],
            session["access_token"],
            session.get("refresh_token"),
        )
        self.tokens += filter(None, (device.token, device.refresh_token))
        return device


Sync = Callable[[Matrix, Device], httpx.Response]

INITIAL_SYNCS: dict[str, Sync] = {
    "sync": Matrix.sync,
    "sync with full state": lambda matrix, device: matrix.sync(
        device, _since(matrix, device), full_state=True
    ),
    "sliding sync": Matrix.sliding_sync,
    "events": Matrix.events,
    "initialSync": Matrix.initial_sync,
}
"""Every request that is an initial sync, by name."""

INCREMENTAL_SYNCS: dict[str, Sync] = {
    "sync since": lambda matrix, device: matrix.sync(device, _since(matrix, device)),
    "sliding sync with pos": lambda matrix, device: matrix.sliding_sync(
        device, matrix.sliding_sync(device).json()["pos"]
    ),
    "events from": lambda matrix, device: matrix.events(device, _since(matrix, device)),
    "rooms initialSync": lambda matrix, device: matrix.room_initial_sync(
        device, matrix.create_room(device)
    ),
}
"""Every other sync, by name; each makes the initial one that it needs."""


def _quoted(user_id: str) -> str:
    return quote(user_id, safe="")  # a slash may be part of it


def _since(matrix: Matrix, device: Device) -> str:
    return matrix.sync(device).json()["next_batch"]
