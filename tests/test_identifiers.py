from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whoami_router import identifiers


@pytest.mark.parametrize(
    ("user_id", "identifier"),
    [
        ("@alice:example.org", "alice"),
        ("@alice:example.org:8448", "alice"),
        ("@alice:[::1]:8448", "alice"),
        ("@a.b-c_d~e:h", "a.b-c_d~e"),
        ("@a=b/c+d:h", "a%3Db%2Fc%2Bd"),
        ("@Åsa Öberg:h", "%C3%85sa%20%C3%96berg"),
        ("@a\r\nX-Evil: 1:h", "a%0D%0AX-Evil"),
        ("@a%41:h", "a%2541"),
        ("@@a:h", "%40a"),
    ],
)
def test_identifier_is_the_encoded_localpart(user_id, identifier):
    assert identifiers.from_user_id(user_id) == identifier


@pytest.mark.parametrize(
    "user_id",
    [
        "",
        "alice",
        "alice:example.org",
        "@alice",
        "@alice:",
        "@:example.org",
        "@a\0b:example.org",
        "@a:example.org\0",
        "@a:" + "b" * 255,
        "@\ud800:example.org",
        "@" + "a" * 10240 + ":example.org",
    ],
)
def test_what_cannot_be_a_user_id_is_refused(user_id):
    with pytest.raises(ValueError):  # noqa: PT011  (its text is for the log)
        identifiers.from_user_id(user_id)


localparts = st.text(
    st.characters(exclude_characters=":\0", exclude_categories=["Cs"]), min_size=1, max_size=200
)


@given(localparts)
def test_any_localpart_becomes_a_legal_header_value_and_stays_distinct(localpart):
    identifier = identifiers.from_user_id(f"@{localpart}:h")
    assert all("!" <= character <= "~" for character in identifier)
    assert unquote(identifier) == localpart


@given(localparts, st.binary(min_size=32, max_size=32))
def test_fingerprint_never_equals_a_user(localpart, digest):
    assert identifiers.from_fingerprint(digest) == "sha256:" + digest.hex()
    assert ":" not in identifiers.from_localpart(localpart)
