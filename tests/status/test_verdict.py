"""The sentence at the top: whether all is well, and if not what is wrong and since when."""

import pytest

from tests.status.answers import answer

NOON = 1_000_000_000_000  # of some day, in milliseconds
SECOND = 1000


def state(cache=0, fingerprint=0, error=0, owner=0, unavailable=0, away=(0,), **others):
    """Return an answer: so much of each counter there is, one of Synapse's URLs that is well."""
    return answer(
        resolves={"cache": cache, "fingerprint": fingerprint, "error": error},
        lookups={"owner": owner, "unavailable": unavailable},
        away=away,
        **others,
    )


NEW = state()
WELL = state(cache=90, owner=9)
AWAY = state(cache=90, owner=9, away=[1])
SHED = "whoami_router_lookups_shed_total"
LIMIT = "whoami_router_lookups_limit"

GOOD = [
    ([NEW], "has not been asked yet"),
    ([NEW, WELL], "All is well. Synapse answered 9 lookups in the last minute."),
    ([WELL], "All is well. Synapse has answered 9 lookups since the start."),
    ([WELL, WELL], "All is well. No lookup was needed in the last minute."),
    # Few of many are no news.
    ([NEW, state(owner=99, cache=1, unavailable=1)], "All is well."),
    # What is over is said for as long as it is to be seen.
    ([NEW, AWAY, WELL], "All is well again. Synapse at http://s0 is back since "),
    ([NEW, AWAY, AWAY, WELL], ", after 4 s."),
    ([state(losses=[0]), state(losses=[1], cache=1)], "http://s0 is back since "),
    ([WELL, None, state(start=7)], "whoami-router was started again at "),
    ([NEW, state(cache=1, start=7)], "whoami-router was started again at "),
]
WARN = [
    ([NEW, state(away=[0, 1])], "Synapse at http://s1 is left alone since "),
    ([NEW, state(away=[0, 1])], "; the other URL answers."),
    ([NEW, state(away=[1, 0, 0])], "; the other URLs answer."),
    ([NEW, state(owner=9, unavailable=1)], "1 of 10 in the last minute had no proper answer."),
    (
        [state(**{SHED: 0, LIMIT: 64}), state(**{SHED: 3, LIMIT: 64})],
        "some requests go by a fallback. 3 requests in the last minute. --max-lookups is 64.",
    ),
    ([state(process_open_fds=95, process_max_fds=100)], "95 of 100 are open"),
    ([state(start=7), state(start=1)], "Several processes answer here in turn"),
]
BAD = [
    ([None], "No answer from whoami-router. Why. This page keeps trying."),
    ([WELL, None], "No answer from whoami-router since "),
    ([AWAY, None], "No answer from whoami-router since "),
    (
        [NEW, AWAY],
        ": known users keep their worker, new tokens are routed one by one.",
    ),
    ([NEW, AWAY], "Synapse at http://s0 is left alone since "),
    ([NEW, state(away=[1, 1])], "Synapse, at each of its 2 URLs, is left alone since "),
    # Nobody saw when it began.
    ([AWAY], " or earlier: known users"),
    ([NEW, None, AWAY], " or earlier: known users"),
    (
        [NEW, state(fingerprint=3, away=[1])],
        "3 of 3 requests in the last minute went by a fallback",
    ),
    ([NEW, state(error=1)], "has a defect"),
    # The worst first, and the rest below.
    ([NEW, state(error=1, away=[0, 1])], "is left alone"),
]
TABLE = [
    (tone, *row) for tone, rows in (("good", GOOD), ("warn", WARN), ("bad", BAD)) for row in rows
]


def seen(answers):
    return [[NOON + 2 * SECOND * i, text] for i, text in enumerate(answers)]


@pytest.mark.parametrize(("tone", "answers", "said"), TABLE)
def test_verdict_is_what_an_administrator_needs_to_know(run, tone, answers, said):
    code = """const [, { tone, headline, details }] = after(arguments[0]);
        return [tone, [headline, ...details].join(" ")]"""
    found_tone, found = run(code, seen(answers))
    assert said in found
    assert found_tone == tone


def test_restart_forgets_that_synapse_was_away(run):
    code = "return after(arguments[0])[1].headline"
    assert "back" not in run(code, seen([NEW, AWAY, state(cache=1, start=7)]))


def test_headline_stays_the_same_while_the_state_does(run):
    """Or a screen reader would say it every two seconds."""
    code = "return after(arguments[0])[1].headline"
    states = [state(cache=n, fingerprint=n, away=[1]) for n in range(3)]
    first = run(code, [[NOON, NEW], [NOON + 2 * SECOND, states[0]]])
    later = [[NOON + 40 * SECOND, states[1]], [NOON + 99 * SECOND, states[2]]]
    assert run(code, later) == first
