"""What is found about whom nginx lets in."""

from tests.nginx.check.edits import CLIENTS, SERVER, changed

CHANGES = [
    ([(CLIENTS, "map $request_path $public", "map $uri $public")], "wrong", "metrics", SERVER),
    (
        [(CLIENTS, "    default 1;\n", "    default 0;\n")],
        "note",
        "local clients of everybody",
        SERVER,
    ),
]


@changed(CHANGES)
def test_change_is_found_and_nothing_else(finds_only, edits, status, words, file):
    finds_only(edits, status, words, file)
