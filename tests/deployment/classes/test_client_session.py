"""Sessions of a client library that people use: what it asks for is done, where it belongs."""

import asyncio
import io
import secrets
import struct
import zlib
from itertools import pairwise
from urllib.parse import quote

import nio
import pytest

from tests.deployment.classes.session import DEADLINE, ask
from tests.stack.matrix import PASSWORD, TOKENS
from tests.stack.synapse import SERVER_NAME

pytestmark = pytest.mark.anyio


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
