"""Sessions of a client library that people use: what it asks for is done, where it belongs."""

import asyncio
import io
import json
import re
import secrets
import struct
import zlib
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import aiohttp
import nio
import pytest

from tests.stack.matrix import PASSWORD, TOKENS
from tests.stack.process import wait_until
from tests.stack.synapse import SERVER_NAME

pytestmark = pytest.mark.anyio

V3 = "/_matrix/client/v3"
DEADLINE = 60
LONG_POLL_MS = 5_000

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


@pytest.fixture
def by(deployment):
    """Checks an answer and returns it; afterwards sees in all logs that its pool served it."""
    session = Session(deployment)
    yield session
    session.see_that_each_pool_served_its_own()
    session.see_that_all_syncs_of_a_user_had_one_worker()


@pytest.fixture
async def device(deployment):
    """Makes a client that nobody is logged in at."""
    clients = []

    def new(user=""):
        client = nio.AsyncClient(
            deployment.nginx.url,
            user,
            # (!) It would ask again and hide what nginx answered.
            config=nio.AsyncClientConfig(max_timeouts=0, max_limit_exceeded=0),
        )
        clients.append(client)
        return client

    yield new
    for client in clients:
        await client.close()


@pytest.fixture
def account(device, by):
    """Registers a user; returns their two devices, which have made their initial syncs."""

    async def register(name):
        localpart = f"{name}-{secrets.token_hex(4)}"
        phone = device(localpart)
        by("login", await phone.register(localpart, PASSWORD))
        assert phone.user_id == f"@{localpart}:{SERVER_NAME}"
        laptop = device(phone.user_id)
        by("login", await laptop.login(PASSWORD))
        assert laptop.user_id == phone.user_id
        assert laptop.device_id != phone.device_id
        for each in (phone, laptop):
            TOKENS.add(each.access_token)
            by("initial_sync", await each.sync())
        return phone, laptop

    return register


@pytest.fixture
def synced(by):
    """Syncs, as clients do, until there is in an answer what is looked for; returns that."""

    async def until(device, find):
        async with asyncio.timeout(DEADLINE):
            while not (found := find(by("sync", await device.sync(timeout=LONG_POLL_MS)))):
                pass
        return found

    return until


@pytest.fixture
def room(by, synced):
    """Makes a room that these devices' users are in, and that all the devices have heard of."""

    async def make(owner, *others, **options):
        made = by("client_reader", await owner[0].room_create(**options))
        for other in others:
            invited = await owner[0].room_invite(made.room_id, other[0].user_id)
            by("event_creator", invited)
            for device in other:
                await synced(device, lambda sync: made.room_id in sync.rooms.invite)
            by("event_creator", await other[0].join(made.room_id))
        for device in [device for devices in (owner, *others) for device in devices]:
            await synced(device, lambda sync: made.room_id in sync.rooms.join)
        return made.room_id

    return make


def said(body):
    return {"msgtype": "m.text", "body": body}


@pytest.fixture
def send(by):
    async def send(device, room_id, body):
        sent = await device.room_send(room_id, "m.room.message", said(body))
        return by("event_creator", sent).event_id

    return send


def events(room_id, *, kind, part="timeline"):
    """Return what looks in a sync for events of a kind in a part of a room."""

    def find(sync):
        if room_id not in sync.rooms.join:
            return []
        found = getattr(sync.rooms.join[room_id], part)
        return [e for e in getattr(found, "events", found) if isinstance(e, kind)]

    return find


def png(side):
    """Return a picture, red and square."""

    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\xff\0\0" * side) * side)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("version", ["11", "12"])  # since 12 a room's ID names no server
async def test_what_is_done_in_a_room_reaches_every_device(
    account, room, synced, send, by, version
):
    alice, bob = await account("alice"), await account("bob")
    room_id = await room(alice, bob, room_version=version)
    assert (":" in room_id) == (version == "11")

    event_id = await send(alice[0], room_id, "curiouser")
    for device in (*alice, *bob):
        (heard,) = await synced(device, events(room_id, kind=nio.RoomMessageText))
        assert (heard.event_id, heard.body) == (event_id, "curiouser")
        assert heard.sender == alice[0].user_id

    by("typing", await alice[0].room_typing(room_id))
    for device in bob:
        (notice,) = await synced(
            device, events(room_id, kind=nio.TypingNoticeEvent, part="ephemeral")
        )
        assert notice.users == [alice[0].user_id]

    by("receipts", await bob[0].update_receipt_marker(room_id, event_id))
    for device in alice:
        (notice,) = await synced(device, events(room_id, kind=nio.ReceiptEvent, part="ephemeral"))
        (receipt,) = notice.receipts
        assert (receipt.event_id, receipt.receipt_type, receipt.user_id) == (
            event_id,
            "m.read",
            bob[0].user_id,
        )

    by("receipts", await bob[0].room_read_markers(room_id, event_id, event_id))
    (marker,) = await synced(bob[1], events(room_id, kind=nio.FullyReadEvent, part="account_data"))
    assert marker.event_id == event_id

    by("event_creator", await alice[0].room_redact(room_id, event_id, "a mistake"))
    (redaction,) = await synced(bob[1], events(room_id, kind=nio.RedactionEvent))
    assert (redaction.redacts, redaction.reason) == (event_id, "a mistake")
    left = by("rooms", await bob[0].room_get_event(room_id, event_id)).event
    assert isinstance(left, nio.RedactedEvent)

    by("event_creator", await bob[1].room_leave(room_id))
    await synced(bob[0], lambda sync: room_id in sync.rooms.leave)
    members = by("rooms", await alice[0].joined_members(room_id)).members
    assert [member.user_id for member in members] == [alice[0].user_id]


async def test_a_room_is_found_and_joined_by_its_alias(account, by, synced, send):
    alice, bob = await account("alice"), await account("bob")
    localpart = f"tea-party-{secrets.token_hex(4)}"
    alias = f"#{localpart}:{SERVER_NAME}"
    made = await alice[0].room_create(
        alias=localpart, visibility=nio.RoomVisibility.public, preset=nio.RoomPreset.public_chat
    )
    room_id = by("client_reader", made).room_id

    assert by("client_reader", await bob[0].room_resolve_alias(alias)).room_id == room_id
    joined = by("event_creator", await bob[0].join(alias))
    assert joined.room_id == room_id
    await synced(bob[1], lambda sync: room_id in sync.rooms.join)
    assert room_id in by("client_reader", await bob[1].joined_rooms()).rooms
    event_id = await send(bob[1], room_id, "no room")
    (heard,) = await synced(alice[1], events(room_id, kind=nio.RoomMessageText))
    assert heard.event_id == event_id


async def test_state_and_members_and_profiles_are_what_they_were_set_to(account, room, synced, by):
    alice, bob = await account("alice"), await account("bob")
    room_id = await room(alice, bob)

    avatar = f"mxc://{SERVER_NAME}/{secrets.token_hex()}"
    by("event_creator", await bob[0].set_displayname("The Hatter"))
    by("event_creator", await bob[0].set_avatar(avatar))
    profile = by("event_creator", await alice[0].get_profile(bob[0].user_id))
    assert (profile.displayname, profile.avatar_url) == ("The Hatter", avatar)

    def renamed(sync):
        found = events(room_id, kind=nio.RoomMemberEvent)(sync)
        return [e for e in found if e.content.get("avatar_url") == avatar]

    (member,) = await synced(alice[1], renamed)
    assert (member.state_key, member.content["displayname"]) == (bob[0].user_id, "The Hatter")
    members = by("rooms", await alice[0].joined_members(room_id)).members
    assert {m.user_id: m.avatar_url for m in members} == {
        alice[0].user_id: None,
        bob[0].user_id: avatar,
    }

    topic = {"topic": "riddles"}
    by("event_creator", await alice[0].room_put_state(room_id, "m.room.topic", topic))
    read = by("event_creator", await bob[0].room_get_state_event(room_id, "m.room.topic"))
    assert read.content["topic"] == "riddles"
    state = by("rooms", await bob[1].room_get_state(room_id)).events
    assert [e["content"]["topic"] for e in state if e["type"] == "m.room.topic"] == ["riddles"]


async def test_what_a_user_keeps_reaches_the_other_device(account, room, synced, by):
    phone, laptop = alice = await account("alice")
    room_id = await room(alice)
    user, kept = f"/user/{quote(phone.user_id)}", {"size": 10}

    by("account_data", await ask(phone, "PUT", f"{user}/account_data/org.example.size", kept))
    (event,) = await synced(
        laptop, lambda sync: [e for e in sync.account_data_events if e.content == kept]
    )
    assert event.type == "org.example.size"
    read = await ask(laptop, "GET", f"{user}/account_data/org.example.size")
    assert by("account_data", read).body == kept

    tags = f"{user}/rooms/{quote(room_id)}/tags"
    by("account_data", await ask(phone, "PUT", f"{tags}/m.favourite", {"order": 0.5}))
    (event,) = await synced(laptop, events(room_id, kind=nio.TagEvent, part="account_data"))
    assert event.tags == {"m.favourite": {"order": 0.5}}
    assert by("account_data", await ask(laptop, "GET", tags)).body == {"tags": event.tags}

    content, rule_id = nio.PushRuleKind.content, secrets.token_hex()
    rule = ("global", content, rule_id)
    set_ = await phone.set_pushrule(*rule, pattern="cheshire", actions=[nio.PushNotify()])
    by("push_rules", set_)

    def rules(sync):
        changes = [e for e in sync.account_data_events if isinstance(e, nio.PushRulesEvent)]
        return [r for e in changes for r in e.global_rules.content if r.id == rule_id]

    (heard,) = await synced(laptop, rules)
    assert heard.pattern == "cheshire"
    read = await ask(laptop, "GET", f"/pushrules/global/content/{rule_id}")
    assert by("push_rules", read).body["pattern"] == "cheshire"
    by("push_rules", await phone.delete_pushrule(*rule))
    gone = await ask(laptop, "GET", f"/pushrules/global/content/{rule_id}")
    assert by("push_rules", gone, status=404).body["errcode"] == "M_NOT_FOUND"


async def test_a_device_tells_another_and_nobody_else(account, synced, by):
    alice, bob = await account("alice"), await account("bob")

    def greeting(text, device):
        content = {"text": text}
        return nio.ToDeviceMessage("org.example.hello", device.user_id, device.device_id, content)

    def heard(sync):
        return [e.source["content"]["text"] for e in sync.to_device_events]

    by("to_device", await alice[0].to_device(greeting("to a laptop", alice[1])))
    by("to_device", await alice[0].to_device(greeting("to a phone", bob[0])))
    assert await synced(alice[1], heard) == ["to a laptop"]
    assert await synced(bob[0], heard) == ["to a phone"]
    # It was not for these, which hear only of what is sent after it.
    for device in (alice[0], bob[1]):
        by("to_device", await bob[0].to_device(greeting("the last", device)))
        assert await synced(device, heard) == ["the last"]


async def test_keys_are_published_and_each_is_given_away_once(account, room, synced, by):
    alice, bob = await account("alice"), await account("bob")
    await room(alice, bob)
    phone = alice[0]
    key = secrets.token_hex()
    device_keys = {
        "user_id": phone.user_id,
        "device_id": phone.device_id,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": {f"ed25519:{phone.device_id}": key},
        "signatures": {},
    }
    once = {"signed_curve25519:AAAAAA": {"key": secrets.token_hex(), "signatures": {}}}
    body = {"device_keys": device_keys, "one_time_keys": once}
    uploaded = by("device_lists", await ask(phone, "POST", "/keys/upload", body)).body
    assert uploaded["one_time_key_counts"]["signed_curve25519"] == 1

    await synced(bob[1], lambda sync: phone.user_id in sync.device_list.changed)
    wanted = {"device_keys": {phone.user_id: []}}
    found = by("keys", await ask(bob[1], "POST", "/keys/query", wanted)).body
    keys = found["device_keys"][phone.user_id][phone.device_id]["keys"]
    assert keys == device_keys["keys"]

    claim = {"one_time_keys": {phone.user_id: {phone.device_id: "signed_curve25519"}}}
    given = by("keys", await ask(bob[0], "POST", "/keys/claim", claim)).body["one_time_keys"]
    assert given == {phone.user_id: {phone.device_id: once}}
    again = by("keys", await ask(bob[1], "POST", "/keys/claim", claim)).body["one_time_keys"]
    assert again.get(phone.user_id, {}) == {}
    await synced(phone, lambda sync: sync.device_key_count.signed_curve25519 == 0)


async def test_presence_is_what_was_set(account, room, synced, by):
    alice, bob = await account("alice"), await account("bob")
    await room(alice, bob)
    by("presence", await alice[0].set_presence("unavailable", "asleep in the teapot"))
    told = await synced(
        bob[1],
        lambda sync: [e for e in sync.presence_events if e.status_msg == "asleep in the teapot"],
    )
    assert {event.user_id for event in told} == {alice[0].user_id}
    read = by("presence", await bob[0].get_presence(alice[0].user_id))
    assert read.status_msg == "asleep in the teapot"


async def test_media_come_back_as_they_were(account, by):
    (phone, _), (_, laptop) = await account("alice"), await account("bob")

    async def upload(content, kind):
        uploaded, _ = await phone.upload(
            io.BytesIO(content), content_type=kind, filesize=len(content)
        )
        return by("media", uploaded).content_uri

    content = secrets.token_bytes(3 * 2**20)
    uri = await upload(content, "application/octet-stream")
    assert by("media", await laptop.download(uri)).body == content

    picture = await upload(png(64), "image/png")
    server, media_id = picture.removeprefix("mxc://").split("/")
    small = await laptop.thumbnail(server, media_id, 32, 32, nio.ResizingMethod.crop)
    assert by("media", small).content_type == "image/png"
    assert struct.unpack(">II", small.body[16:24]) == (32, 32)
    limit = by("media", await phone.content_repository_config()).upload_size
    assert limit == 50 * 2**20


async def test_people_and_words_are_found(account, room, send, by):
    alice, bob = await account("alice"), await account("bob")
    room_id = await room(alice, bob)
    name, word = f"duchess{secrets.token_hex(4)}", f"jabberwock{secrets.token_hex(4)}"

    by("event_creator", await alice[0].set_displayname(name))
    async with asyncio.timeout(DEADLINE):  # the worker of the directory learns of it afterwards
        people = []
        while not people:
            found = await ask(bob[0], "POST", "/user_directory/search", {"search_term": name})
            people = by("user_directory", found).body["results"]
    assert [(p["user_id"], p["display_name"]) for p in people] == [(alice[0].user_id, name)]

    event_id = await send(alice[1], room_id, f"beware the {word}, my son")
    search = {"search_categories": {"room_events": {"search_term": word}}}
    found = by("client_reader", await ask(bob[1], "POST", "/search", search)).body
    results = found["search_categories"]["room_events"]["results"]
    assert [result["result"]["event_id"] for result in results] == [event_id]


async def test_a_long_conversation_is_read_backwards_to_its_start(account, room, send, device, by):
    alice, bob = await account("alice"), await account("bob")
    room_id = await room(alice, bob)
    sent = [await send(alice[n % 2], room_id, f"line {n}") for n in range(35)]

    only_last = {"timeline": {"limit": 1}}
    uploaded = by("client_reader", await bob[0].upload_filter(room=only_last))
    path = f"/user/{quote(bob[0].user_id)}/filter/{uploaded.filter_id}"
    assert by("client_reader", await ask(bob[1], "GET", path)).body["room"] == only_last

    tablet = device(bob[0].user_id)
    by("login", await tablet.login(PASSWORD))
    TOKENS.add(tablet.access_token)
    sync = by("initial_sync", await tablet.sync(sync_filter=uploaded.filter_id))
    timeline = sync.rooms.join[room_id].timeline
    assert [event.event_id for event in timeline.events] == sent[-1:]

    read, pages = [], [timeline.prev_batch]
    while pages[-1]:
        page = by("pagination", await tablet.room_messages(room_id, pages[-1], limit=10))
        read += page.chunk
        pages.append(page.end)
    assert len(pages) > 4
    lines = [event.event_id for event in read if isinstance(event, nio.RoomMessageText)]
    assert lines == sent[-2::-1]
    assert isinstance(read[-1], nio.RoomCreateEvent)
    assert all(a.server_timestamp >= b.server_timestamp for a, b in pairwise(read))

    around = by("rooms", await bob[0].room_context(room_id, sent[17], limit=2))
    assert [around.events_before[0].event_id, around.events_after[0].event_id] == [
        sent[16],
        sent[18],
    ]


async def test_a_device_that_is_deleted_or_logged_out_is_refused_and_no_other(account, device, by):
    phone, laptop = await account("alice")
    tablet = device(phone.user_id)
    by("login", await tablet.login(PASSWORD))
    TOKENS.add(tablet.access_token)
    by("initial_sync", await tablet.sync())

    async def listed():
        return {d.id for d in by("device_lists", await phone.devices()).devices}

    async def refused(device):
        # Synapse's main process tells its workers, each in its own time.
        async with asyncio.timeout(DEADLINE):
            while not isinstance(await device.whoami(), nio.WhoamiError):
                pass
            while not isinstance(answer := await device.sync(), nio.SyncError):
                pass
        return by("sync", answer, status=401).status_code == "M_UNKNOWN_TOKEN"

    assert await listed() == {phone.device_id, laptop.device_id, tablet.device_id}
    asked = await phone.delete_devices([tablet.device_id])
    assert isinstance(by("device_lists", asked, status=401), nio.DeleteDevicesAuthResponse)
    auth = {
        "type": "m.login.password",
        "session": asked.session,
        "identifier": {"type": "m.id.user", "user": phone.user_id},
        "password": PASSWORD,
    }
    by("device_lists", await phone.delete_devices([tablet.device_id], auth))
    assert await listed() == {phone.device_id, laptop.device_id}
    assert await refused(tablet)

    token = laptop.access_token
    by("main", await laptop.logout())
    laptop.access_token = token
    assert await refused(laptop)

    me = by("client_reader", await phone.whoami())
    assert (me.user_id, me.device_id) == (phone.user_id, phone.device_id)
    by("sync", await phone.sync())
    assert await listed() == {phone.device_id}
