"""What whoami_router.nginx_maps says of a variable is what a real nginx makes of it."""

import pytest

from tests.nginx.own import own_nginx
from whoami_router.nginx_conf import load
from whoami_router.nginx_maps import Maps

MAPS = r"""
map $arg_x $exact {
    default other;
    "" nothing;
    ABC upper;
    \default "the word";
    \~a tilde;
    \\b backslash;
    "c" "$arg_y and ${arg_y}z";
}
map $arg_x $without_default { a b; }
map $arg_x $of_nothing {
    "~^$" "never asked";
    "~." something;
    default nothing;
}
map $arg_x $expression {
    "~^a(?<first>.)(.*)$" "$first-$2";
    "~*^B(.)?"            "b:$1:$first";
    "~^c$"                "c:$1";
    "~^d(?'second'x)?"    "d:$1:$second";
    "~^e\.\d{2}$"         e;
    "~*^ABC"              "never, as the first line that matches counts";
    default               "$first|$1";
}
map "$arg_x:$arg_y" $two { "~^(?<left>[^:]*):(?<right>.*)$" "$right:$left"; }
map $expression $chained { default "<$expression>"; "~^x" x; }
map $arg_x $last_counts { default first; }
map $arg_x $last_counts { default second; }
map $arg_x $Mixed { default "$ARG_X$Arg_y"; }
map $arg_y $number { "~^(\d)(\d)$" "$1$2$10"; default none; }
map $arg_x $forgetful { volatile; default "$arg_x"; }
include more/*.conf;
map $arg_x $from_other_files { include more/lines; default none; }
"""

FILES = {
    "more/2.conf": "map $arg_x $in_order { default two; }",
    "more/10.conf": "map $arg_x $in_order { default ten; }",
    "more/a.conf": "include more/lines_of_a;",
    "more/lines_of_a": "map $arg_x $included { default yes; }",
    "more/lines": "abc found;",
}

ANSWERS = [
    "$exact",
    "$without_default",
    "$of_nothing",
    "$expression|$1|$first",
    "$number|$expression|$1",
    "$expression|$number|$1",
    "$expression|$number|$expression|$1",
    "$two|$left",
    "$chained",
    "$last_counts",
    "$mixed$MIXED",
    "$forgetful",
    "$in_order",
    "$included",
    "$from_other_files",
]

ASKED = [
    (x, y)
    for x in ("", "abc", "ABC", "abcd", "Bcd", "b", "c", "d", "dx", "e.12", "e12", "default", "~a")
    for y in ("", "12")
] + [("\\b", "1"), ("\\\\b", ""), ("xyz", "y"), ("a", "%C3%A9"), ("C", "C")]


@pytest.fixture(scope="module")
def nginx():
    """Yield a client, and the maps as they are read from its configuration."""
    locations = "".join(
        f'location = /{number} {{ return 200 "[{answer}]"; }}\n'
        for number, answer in enumerate(ANSWERS)
    )
    http = f"{MAPS} server {{ listen 8080; {locations} }}"
    with own_nginx(http, files=FILES) as (client, directory):
        yield client, Maps(load(directory / "nginx/nginx.conf").maps)


@pytest.mark.parametrize("answer", ANSWERS)
def test_variables_are_what_nginx_makes_of_them(nginx, answer):
    client, maps = nginx
    for x, y in ASKED:
        response = client.get(f"/{ANSWERS.index(answer)}?x={x}&y={y}")
        query = response.request.url.query.decode()
        # nginx does not decode it.
        raw = dict(part.split("=", 1) for part in query.split("&"))
        request = maps.request({f"arg_{name}": value for name, value in raw.items()})
        assert request.text(f"[{answer}]") == response.text, (x, y)
