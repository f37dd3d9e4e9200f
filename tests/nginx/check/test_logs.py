"""What is found about tokens in logs."""

from tests.nginx.check.edits import LOG, changed
from tests.stack.nginx import ACCESS_LOG

CHANGES = [
    ([ACCESS_LOG, (LOG, " routing;", ";")], "wrong", "access tokens in queries", LOG),
    ([ACCESS_LOG, (LOG, " routing;", " combined;")], "wrong", "in queries", LOG),
    (
        [ACCESS_LOG, ("conf.d/log_format.conf", "$remote_addr [", "$http_authorization [")],
        "wrong",
        "every access token",
        LOG,
    ),
    ([ACCESS_LOG, ("conf.d/log_format.conf", '$logged_uri"', '$args"')], "wrong", "queries", LOG),
    ([(LOG, "error_log stderr emerg;", "error_log stderr crit;")], "note", "level crit", LOG),
]


@changed(CHANGES)
def test_change_is_found_and_nothing_else(finds_only, edits, status, words, file):
    finds_only(edits, status, words, file)
