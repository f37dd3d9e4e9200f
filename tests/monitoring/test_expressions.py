"""Each expression has data in a real Prometheus that has scraped real routers and a real mtail."""

import math
import re

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.monitoring.dashboard import VARIABLES, expressions, filled_in
from tests.monitoring.programs import DEPLOY
from tests.monitoring.test_rules import alerts, rules
from tests.stack.process import wait_until

MTAIL = DEPLOY / "mtail/whoami-router.mtail"
# Of a metric, and not a part of a recorded name (job:whoami_router_hits:ratio_rate5m).
NAME = re.compile(r"(?<![\w:])(?:(?:whoami_router|nginx|process)_\w+|up)(?![\w:])")

# What does not go wrong here, with what to look for instead: everything but that it is too much.
NOT_PROVOKED = {
    "WhoamiRouterAllDown": (" == 0", ""),
    "WhoamiRouterAbsent": ('job="whoami-router"', 'job="nobody"'),
    "WhoamiRouterNginxUnlogged": ("unless", "and"),
    "WhoamiRouterNotAsked": ("unless", "and"),
    "WhoamiRouterNameless": ("> 0.5", ""),
    "WhoamiRouterLookupsSlow": ("> 0.5", ""),
    "WhoamiRouterHitRatioLow": (" > 3600", ""),
    "WhoamiRouterDescriptorsShort": (" > 0.8", ""),
    "WhoamiRouterRestarts": (" > 3", ""),
    "WhoamiRouterDefect": ("> 0", ""),
}


def has_data(prometheus, expression):
    """Wait for values, all of them numbers."""

    def numbers():
        values = prometheus.values(expression)
        return values and not any(map(math.isnan, values))

    wait_until(numbers, expression)


@pytest.mark.parametrize("place", expressions())
def test_panel_has_data(watched, place):
    has_data(watched.prometheus, expressions()[place])


def queries():
    return [
        filled_in(variable["query"]["query"])
        for variable in VARIABLES.values()
        if variable["type"] == "query"
    ]


@pytest.mark.parametrize("query", queries())
def test_variable_has_values(watched, query):
    series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()
    wait_until(lambda: watched.prometheus.label_values(label, series), query)


@pytest.mark.parametrize("name", [rule["record"] for rule in rules() if "record" in rule])
def test_rule_records_data(watched, name):
    has_data(watched.prometheus, name)


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_alert_has_data(watched, rule):
    expression = rule["expr"]
    if rule["alert"] in NOT_PROVOKED:
        old, new = NOT_PROVOKED[rule["alert"]]
        assert old in expression
        has_data(watched.prometheus, expression.replace(old, new))
        return

    def noticed():
        return watched.prometheus.rules()[rule["alert"]]["state"] in ("pending", "firing")

    wait_until(noticed, rule["alert"])


def test_no_rule_fails(watched):
    assert {rule["health"] for rule in watched.prometheus.rules().values()} == {"ok"}


def named(expressions):
    return set(NAME.findall("\n".join(expressions)))


DEFINED = {
    "rules": [rule["expr"] for rule in rules()],
    "dashboard": [*expressions().values(), *queries()],
    "mtail": re.findall(r"^counter (\w+)", MTAIL.read_text(), re.MULTILINE),
}


@pytest.mark.parametrize("words", DEFINED.values(), ids=DEFINED)
def test_every_metric_that_is_named_exists(watched, words):
    names = named(words)
    assert len(names) >= 3
    assert names <= watched.prometheus.names()


def test_every_metric_of_the_router_is_shown(watched):
    text = httpx.get(f"http://{watched.well.address}/metrics").text
    families = {family.name: family.type for family in text_string_to_metric_families(text)}
    ours = {name: kind for name, kind in families.items() if name.startswith("whoami_router_")}
    assert len(ours) >= 15
    shown = named(expressions().values())
    suffixes = {"counter": "_total", "histogram": "_bucket"}
    assert {name + suffixes.get(kind, "") for name, kind in ours.items()} <= shown


def test_no_label_holds_a_user_or_a_token(watched):
    for address in (watched.well.address, watched.mtail.address):
        text = httpx.get(f"http://{address}/metrics").text
        assert not re.search(r"token-\d|example\.org|sha256:", text)
