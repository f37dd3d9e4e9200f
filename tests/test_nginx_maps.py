"""What maps do not say; that they say the same as nginx is in tests/nginx/test_nginx_maps.py."""

import pytest

from whoami_router.nginx_conf import load
from whoami_router.nginx_maps import Maps, Undecided, variables


@pytest.fixture
def read(tmp_path):
    def read(text):
        (tmp_path / "maps.conf").write_text(text)
        return Maps(load(tmp_path / "maps.conf").maps)

    return read


UNDECIDED = [
    ("", "$http_cookie", "$http_cookie"),
    ("", "a${Arg_X}b", "$arg_x"),
    ("map $uri $a { default 1; }", "$a", "$uri"),
    ("map $user $a { alice $uri; default $user; }", "$a", "$uri"),
    ("map $user $a { ~^(?<x>.) $b; } map $x $b { a $uri; }", "$a", "$uri"),
    ("map $a $b { } map $b $a { }", "$a", "$a, which depends on itself"),
    ("map $user $a { hostnames; default 1; }", "$a", "$a, whose map is one of host names"),
    (r'map $user $a { "~(?|a|b)" 1; }', "$a", "(?|a|b) is not understood here"),
]


@pytest.mark.parametrize(("text", "template", "reason"), UNDECIDED)
def test_what_is_not_known_is_not_guessed(read, text, template, reason):
    with pytest.raises(Undecided) as undecided:
        read(text).request({"user": "alice"}).text(template)
    assert reason in str(undecided.value)


DECIDED = [
    ("map $user $a { bob $uri; default $user; }", "$a", "alice"),
    ("map $user $a { default $b; } map $user $b { alice 1; default $a; }", "$a", "1"),
    ("map $uri $user { default never; }", "$user", "alice"),
    ("map $user $a { ~^(?<x>.) 1; }", "$x", ""),
]


@pytest.mark.parametrize(("text", "template", "expected"), DECIDED)
def test_only_what_is_needed_has_to_be_known(read, text, template, expected):
    assert read(text).request({"user": "alice"}).text(template) == expected


def test_set_variables_count_until_they_are_set_to_what_nobody_knows(read):
    request = read("").request({"user": "alice"})
    request.assign("a", "<$user>")
    assert request.text("$a") == "<alice>"
    request.assign("b", "$a$uri")
    request.assign("a", None)
    for name in ("$a", "$b"):
        with pytest.raises(Undecided):
            request.text(name)


COMPARED = [
    ('map $user $a { "" $uri; default $user; }', []),
    ("map $user $a { default $user; }", []),
    ("map $user $a { alice 1; default $user; }", ["alice"]),
    ("map $user $a { ~^a 1; }", ["alice"]),
    ("map <$user> $a { ~^a 1; }", ["<alice>"]),
]


@pytest.mark.parametrize(("text", "compared"), COMPARED)
def test_request_tells_what_was_looked_up_in_maps_that_treat_values_differently(
    read, text, compared
):
    request = read(text).request({"user": "alice"})
    request.text("$a")
    assert request.compared == compared


def test_values_that_a_variable_is_compared_with_or_may_become_are_found(read):
    maps = read(
        """
        map $group $pool { default main; sync sync_pool; "" none; ~x y; }
        map $other $group { default $more; a one; }
        map $arg $more { default sync; b two; c "$uri"; }
        """
    )
    assert maps.mentioned("group") == ["sync", "one", "two"]
    assert maps.values("pool") == ["sync_pool", "none", "y", "main"]


VARIABLES = [
    ("", []),
    ("a", []),
    ("$A$b", ["a", "b"]),
    ("${c}d$1$e-$f.g$", ["c", "e", "f"]),
]


@pytest.mark.parametrize(("template", "names"), VARIABLES)
def test_variables_of_a_text_are_found(template, names):
    assert variables(template) == names
