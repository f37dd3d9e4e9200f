import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.stack.nginx import Nginx
from whoami_router.nginx_conf import UnreadableConfiguration, load

SHIPPED = Path(__file__).parents[1] / "nginx"


@pytest.fixture
def write(tmp_path):
    """Return a function that writes files by name and returns the path of the first."""

    def write(text, **files):
        (tmp_path / "nginx.conf").write_text(text)
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path / "nginx.conf"

    return write


def shown(directives):
    """Return directives as lists of their words, a block last."""
    return [
        [one.name, *one.args] if one.block is None else [one.name, *one.args, shown(one.block)]
        for one in directives
    ]


READ = [
    ("", []),
    ("# nothing", []),
    ("a;", [["a"]]),
    ("a b c;", [["a", "b", "c"]]),
    ("a\n  b # why\n  c;", [["a", "b", "c"]]),
    ("a b#c;", [["a", "b#c"]]),
    ("a { b; c { d e; } }", [["a", [["b"], ["c", [["d", "e"]]]]]]),
    ("a { } b;", [["a", []], ["b"]]),
    ("if ($x = '') { a; }", [["if", "($x", "=", "", ")", [["a"]]]]),
    ('"" a;', [["", "a"]]),
    ('map $a $b { "~^x{2};$" "{"; }', [["map", "$a", "$b", [["~^x{2};$", "{"]]]]),
    (r'a "\"" "\\" "\d" "\\\"" \t;', [["a", '"', "\\", r"\d", '\\"', "\t"]]),
    ('a "it\'s" \'"\' it"s;', [["a", "it's", '"', 'it"s']]),
    ("a ${b}c;", [["a", "${b}c"]]),
    ("a ${b} c ${d}  ${e};", [["a", "${b}", "c", "${d}", "${e}"]]),
    ('a "${b} c" ${d}\ne { }', [["a", "${b} c", "${d}", "e", []]]),
    ("map ${a} ${b} { x; }", [["map", "${a}", "${b}", [["x"]]]]),
    ("a 'b\nc' d;", [["a", "b\nc", "d"]]),
    ("http { lua_x; content_by_lua_block { y = {';'} } z; }", None),
]


@pytest.mark.parametrize(("text", "expected"), READ)
def test_text_is_split_as_nginx_does(write, text, expected):
    read = load(write(text)).directives
    assert expected is None or shown(read) == expected


def test_each_directive_says_where_it_stands(write):
    path = write("a;\ninclude b;\nc\n d {\n e;\n}", b="f;\n\ng;")
    found = load(path).directives
    assert [(one.name, one.file.name, one.line) for one in found] == [
        ("a", "nginx.conf", 1),
        ("f", "b", 1),
        ("g", "b", 3),
        ("c", "nginx.conf", 3),
    ]
    [e] = found[-1].children
    assert e.place == f"{path}:5"


UNREADABLE = [
    ("a b", "nginx.conf:1: unexpected end of file, no \";\" after 'a'"),
    ("http {", 'nginx.conf:1: unexpected end of file, expecting "}"'),
    ("http {\n a }", 'nginx.conf:2: unexpected "}", no ";" after \'a\''),
    ("}", 'nginx.conf:1: unexpected "}"'),
    ("a;\n;", 'nginx.conf:2: unexpected ";"'),
    ("a;\n{ }", 'nginx.conf:2: unexpected "{"'),
    ("a {" * 200 + "}" * 200, '"{" in 50 blocks'),
    ("include;", "nginx.conf:1: include needs one file name"),
    ("include a b;", "nginx.conf:1: include needs one file name"),
    ('a ${b} "c d";', "nginx.conf:1: ${b} cannot be read here. Put it in quotes."),
    ("a ${b} # c\n;", "nginx.conf:1: ${b} cannot be read here. Put it in quotes."),
    ("a;\ninclude missing.conf;", "nginx.conf:2: cannot read"),
    ("include .;", "Is a directory"),
    ("include nginx.conf;", "includes itself"),
    ("include ngin[x].conf;", "includes itself"),
    ('"' + "\\0" + '" "";include "\0";', "null byte"),
]


@pytest.mark.parametrize(("text", "reason"), UNREADABLE)
def test_what_nginx_could_not_read_is_named_in_one_line(write, text, reason):
    with pytest.raises(UnreadableConfiguration) as refused:
        load(write(text))
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("path", ["/nowhere/nginx.conf", "/", "nul\0.conf", "x" * 5000])
def test_file_that_cannot_be_read_is_named_in_one_line(path):
    with pytest.raises(UnreadableConfiguration) as refused:
        load(path)
    assert "\n" not in str(refused.value)


@given(st.text(alphabet="ab {};#\"'\\$\n~()=") | st.text())
def test_no_text_raises_anything_else(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.conf"
    path.write_bytes(text.encode(errors="surrogatepass"))
    try:
        load(path)
    except UnreadableConfiguration as exc:
        assert "\n" not in str(exc)  # noqa: PT017  (any text may be refused, or none)


def test_bytes_that_are_not_utf_8_are_read(tmp_path):
    (tmp_path / "nginx.conf").write_bytes(b"a \xff; # \xe9\nb;")
    assert [one.name for one in load(tmp_path / "nginx.conf").directives] == ["a", "b"]


def test_included_files_come_in_the_order_of_their_names(write):
    path = write(
        "http { include conf.d/*.conf; }",
        **{"conf.d/b.conf": "b;", "conf.d/10.conf": "ten;", "conf.d/9.conf": "nine;"},
        **{"conf.d/B.conf": "B;", "conf.d/.hidden.conf": "hidden;", "conf.d/c": "c;"},
    )
    assert [one.name for one in load(path).http.children] == ["ten", "nine", "B", "b"]


def test_pattern_that_matches_nothing_is_no_error(write):
    assert load(write("include conf.d/*.conf;")).directives == ()


def test_one_file_may_be_included_in_several_places(write):
    path = write("http { server { include x; } server { include x; } }", x="include y;", y="z;")
    assert [shown(server.children) for server in load(path).servers] == [[["z"]], [["z"]]]


def test_includes_are_relative_to_the_main_file(write):
    path = write(
        "http { include conf.d/*.conf; }",
        **{"conf.d/site.conf": "server { include snippets/x.conf; }", "snippets/x.conf": "x;"},
    )
    [server] = load(path).servers
    assert shown(server.children) == [["x"]]


def test_includes_of_a_part_are_relative_to_the_main_file_above_it(write):
    write(
        "http { include conf.d/*.conf; }",
        **{"conf.d/site.conf": "server { include snippets/x.conf; }", "snippets/x.conf": "x;"},
    )
    part = load(write("http { }").parent / "conf.d/site.conf")
    assert not part.whole
    assert shown(part.servers[0].children) == [["x"]]


def test_whole_configuration_of_another_name_is_relative_to_itself(write):
    write("", **{"sub/main.conf": "events { } http { include x; }", "sub/x": "x;"})
    configuration = load(write("").parent / "sub/main.conf")
    assert configuration.whole
    assert shown(configuration.http.children) == [["x"]]


def test_part_of_a_configuration_is_taken_for_what_is_in_http(write):
    path = write("upstream u { server a; } map $a $b { } server { location / { } }")
    configuration = load(path)
    assert [one.args for one in configuration.upstreams] == [("u",)]
    assert list(configuration.maps) == ["b"]
    [location] = configuration.locations
    assert [one.name for one in location.parents] == ["http", "server"]


def test_of_several_maps_of_one_variable_the_last_counts(write):
    maps = load(write("map $a $B { 1 2; } map $c $b { } map $a $other { }")).maps
    assert {name: one.args for name, one in maps.items()} == {
        "b": ("$c", "$b"),
        "other": ("$a", "$other"),
    }


def test_line_in_an_upstream_is_no_server(write):
    assert load(write("http { upstream u { server a; } server a; }")).servers == []


def test_locations_know_what_is_around_them(write):
    path = write(
        """http { a 1; b 1; b 2; c 1;
            server { a 2; location /x { location /x/y { b 3; if ($z) { location /no { } } } } }
            server { location /z { } }
        }"""
    )
    outer, inner, other = load(path).locations
    assert [one.directive.args for one in (outer, inner, other)] == [("/x",), ("/x/y",), ("/z",)]
    assert [one.name for one in inner.parents] == ["http", "server", "location"]
    assert inner.server is outer.server is not other.server
    assert shown(inner.inherited("a")) == [["a", "2"]]
    assert shown(inner.inherited("b")) == [["b", "3"]]
    assert shown(outer.inherited("b")) == [["b", "1"], ["b", "2"]]
    assert shown(other.inherited("c")) == [["c", "1"]]
    assert inner.inherited("d") == ()


def test_every_directive_is_found_wherever_it_is(write):
    names = [one.name for one in load(write("http { a { b { c; } } d; }")).every]
    assert names == ["a", "b", "c", "d"]


def test_shipped_files_are_read_from_a_checkout_and_elsewhere(monkeypatch):
    elsewhere = load(SHIPPED / "nginx.conf")
    monkeypatch.chdir(SHIPPED.parent)
    here = load("nginx/nginx.conf")
    assert shown(here.directives) == shown(elsewhere.directives)
    assert here.whole
    assert len(here.upstreams) > 20
    assert here.maps["pool"].file.name == "upstreams.conf"


def test_nginx_reads_the_shipped_files_in_the_same_order(tmp_path):
    main = Nginx(tmp_path, {}).files / "nginx.conf"
    files = dict.fromkeys(str(one.file) for one in every(load(main).directives))
    printed = subprocess.run(
        ["nginx", "-e", "stderr", "-T", "-c", main], capture_output=True, text=True, check=True
    ).stdout
    read = re.findall("^# configuration file (.*):$", printed, re.MULTILINE)
    assert [file for file in read if file in files] == list(files)
    assert len(files) > 10


def every(directives):
    for one in directives:
        yield one
        yield from every(one.children)
