from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whoami_router.settings import Inherited, Tcp, Unix, parse_listen, parse_synapse_url


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9009", Tcp("127.0.0.1", 9009)),
        ("localhost:0", Tcp("localhost", 0)),
        ("[::1]:9009", Tcp("::1", 9009)),
        ("unix:/run/whoami-router/sock", Unix(Path("/run/whoami-router/sock"))),
        ("fd:3", Inherited(3)),
    ],
)
def test_listen_address_is_read_and_written_alike(text, address):
    assert parse_listen(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "9009",
            ":9009",
            "[]:9009",
            "::1:9009",
            "host:",
            "host:http",
            "host:65536",
            "host:-1",
        ),
        *("host:٣", "unix:", "unix:sock", "fd:", "fd:x", "fd:-1", "http://127.0.0.1:9009"),
    ],
)
def test_wrong_listen_address_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="for example"):
        parse_listen(text)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:8008", "http://127.0.0.1:8008"),
        ("http://synapse:8008/", "http://synapse:8008"),
        ("http://[::1]:8008", "http://[::1]:8008"),
        ("http://synapse", "http://synapse"),
        ("unix:/run/synapse.sock", "unix:/run/synapse.sock"),
    ],
)
def test_synapse_url_is_read(text, url):
    assert parse_synapse_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        *("", "synapse", "synapse:8008", "https://h:1", "http://", "http://h:0", "http://h:x"),
        *("http://h:65536", "http://u:p@h", "http://h/_matrix", "http://h?a", "http://h#a"),
        *("http://[h", "http://a b:80", "http://h:8008?", "http://a..b:1", "http://%zz:1"),
        *("unix:", "unix:synapse.sock"),
    ],
)
def test_wrong_synapse_url_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="for example"):
        parse_synapse_url(text)


@given(st.text() | st.text().map("http://{}".format) | st.text().map("unix:/{}".format))
def test_no_text_raises_anything_else(text):
    for parse in parse_listen, parse_synapse_url:
        with suppress(ValueError):
            parse(text)
