import base64
import hashlib
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from whoami_router.tokens import (
    by_name,
    extract_token,
    fingerprint,
    is_askable,
    native_localpart,
)

# Issued by a Synapse 1.163.2 for @alice:example.org.
NATIVE = b"syt_YWxpY2U_GPIkutRJaRjxLXIaUWCA_2e3JE1"


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        pytest.param([], None, id="nothing"),
        pytest.param([(b"authorization", b"Bearer abc")], b"abc", id="header"),
        pytest.param([(b"authorization", b"bearer abc")], None, id="lower case"),
        pytest.param([(b"authorization", b"Bearer  abc")], None, id="two spaces"),
        pytest.param([(b"authorization", b"Bearer abc ")], None, id="space behind"),
        pytest.param([(b"authorization", b"Bearer a b")], None, id="space within"),
        pytest.param([(b"authorization", b"Bearer\tabc")], None, id="tab"),
        pytest.param([(b"authorization", b"Bearer ")], None, id="empty"),
        pytest.param([(b"authorization", b"Bearer")], None, id="no token"),
        pytest.param([(b"authorization", b"Basic abc")], None, id="other scheme"),
        pytest.param([(b"authorization", b"Bearer a")] * 2, None, id="repeated header"),
        pytest.param(
            [(b"authorization", b"Bearer a"), (b"authorization", b"")], None, id="and an empty one"
        ),
        pytest.param(
            [(b"cookie", b"1"), (b"cookie", b"2"), (b"authorization", b"Bearer a")],
            b"a",
            id="another header repeated",
        ),
        pytest.param(
            [(b"x-original-uri", b"/s?access_token=a"), (b"x-original-uri", b"/?access_token=b")],
            b"a",
            id="repeated uri",
        ),
        pytest.param([(b"x-original-uri", b"/s?access_token=abc")], b"abc", id="query"),
        pytest.param([(b"x-forwarded-uri", b"/s?access_token=abc")], b"abc", id="forwarded uri"),
        pytest.param(
            [(b"x-forwarded-uri", b"/s?access_token=b"), (b"x-original-uri", b"/s?since=1")],
            None,
            id="original uri wins",
        ),
        pytest.param(
            [(b"x-original-uri", b"/s?access_token=b"), (b"authorization", b"Bearer a")],
            b"a",
            id="header wins",
        ),
        pytest.param([(b"x-original-uri", b"/s?a=1&access_token=b&c")], b"b", id="among others"),
        pytest.param([(b"x-original-uri", b"/s?access_token=%61%2B%3d")], b"a+=", id="encoded"),
        pytest.param([(b"x-original-uri", b"/s?access%5Ftoken=a")], b"a", id="encoded name"),
        pytest.param([(b"x-original-uri", b"/s?access_token=a+b")], b"a b", id="plus is a space"),
        pytest.param([(b"x-original-uri", b"/s?access_token=a&access_token=b")], b"a", id="first"),
        pytest.param([(b"x-original-uri", b"/s?access_token=")], None, id="empty query token"),
        pytest.param([(b"x-original-uri", b"/s?xaccess_token=a")], None, id="longer name"),
        pytest.param([(b"x-original-uri", b"/access_token=a")], None, id="in the path"),
        pytest.param([(b"x-original-uri", b"//[?access_token=a")], b"a", id="no URL at all"),
        pytest.param([(b"x-original-uri", b"/s?access_token=%ff%00")], b"\xff\0", id="any byte"),
        pytest.param([(b"x-original-uri", b"/s?access_token=%zz")], b"%zz", id="bad encoding"),
        pytest.param([(b"x-original-uri", b"\xc3\xa9?access_token=\xc3")], b"\xc3", id="raw bytes"),
    ],
)
def test_token_is_read_as_synapse_reads_it(headers, token):
    assert extract_token(by_name(headers)) == token


names = st.sampled_from([b"authorization", b"x-original-uri", b"x-forwarded-uri", b"cookie"])
values = st.binary() | st.builds(
    bytes.__add__, st.sampled_from([b"Bearer ", b"/s?access_token=", b"//[?", b"?"]), st.binary()
)


@given(st.lists(st.tuples(names, values)))
@example([(b"authorization", b"Bearer " + b"a" * 65536)])
@example([(b"x-original-uri", b"?access_token=" + b"%41" * 65536)])
def test_no_header_raises(headers):
    token = extract_token(by_name(headers))
    assert token is None or len(token) > 0


@pytest.mark.parametrize(
    ("token", "askable"),
    [
        (b"mct_abc.def~", True),
        (b"a" * 8192, True),
        (b"a" * 8193, False),
        (b"a b", False),
        (b"a\r\nX-Evil: 1", False),
        (b"a\n", False),
        (b"\xc3\xa9", False),
        (b"\0", False),
    ],
)
def test_only_what_a_header_can_carry_is_asked_about(token, askable):
    assert is_askable(token) is askable


def test_fingerprint_is_sha256():
    assert fingerprint(b"abc") == hashlib.sha256(b"abc").digest()


@pytest.mark.parametrize(
    ("token", "localpart"),
    [
        pytest.param(NATIVE, "alice", id="issued by Synapse"),
        pytest.param(NATIVE[:-1] + b"2", None, id="wrong checksum"),
        pytest.param(NATIVE.replace(b"YWxp", b"YWxq"), None, id="wrong localpart"),
        pytest.param(NATIVE.lower(), None, id="wrong case"),
        pytest.param(b"syt_YWxpY2U_abc", None, id="no checksum"),
        pytest.param(b"mct_abcdef", None, id="delegated authentication"),
        pytest.param(b"", None, id="empty"),
        pytest.param(b"\xff\xfe_\xff", None, id="no text"),
    ],
)
def test_native_token_names_its_owner_only_if_its_checksum_holds(token, localpart):
    assert native_localpart(token) == localpart


@pytest.mark.parametrize("encoded", [b"", b"=", b"a", b"YWxp!!!!Y2U", b"/w", b"////"])
def test_valid_checksum_around_nonsense_names_nobody(encoded):
    assert native_localpart(with_checksum(b"syt_" + encoded + b"_random")) is None


@given(st.binary())
def test_no_token_raises(token):
    native_localpart(token)
    native_localpart(with_checksum(b"syt_" + token))


def with_checksum(body):
    """Independent of the package: counts digits up instead of dividing a number down."""
    alphabet = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    crc = zlib.crc32(body)
    return body + b"_" + bytes(alphabet[crc // 62**power % 62] for power in range(5, -1, -1))


def native(localpart):
    """Return a token as Synapse issues it for this localpart, in bytes."""
    encoded = base64.b64encode(localpart).rstrip(b"=")
    return with_checksum(b"syt_" + encoded + b"_GPIkutRJaRjxLXIaUWCA")
