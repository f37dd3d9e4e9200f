"""The dashboard is one that Grafana reads, as far as its published schema knows."""

import copy
import json
from itertools import combinations

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.monitoring.dashboard import DASHBOARD, PANELS, VARIABLES
from tests.monitoring.programs import DEPLOY

register_default_plugins()

SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def not_understood(written, read, place="dashboard"):
    """Return where what was read and written again differs from what was written."""
    if isinstance(written, dict) and isinstance(read, dict):
        return [
            found
            for key, value in written.items()
            for found in not_understood(value, read.get(key), f"{place}.{key}")
        ]
    if isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        return [
            found
            for number, (one, other) in enumerate(zip(written, read, strict=True))
            for found in not_understood(one, other, f"{place}[{number}]")
        ]
    return [] if written == read else [place]


def read_and_written(dashboard):
    return json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))


def test_every_word_is_in_grafanas_schema():
    assert not_understood(DASHBOARD, read_and_written(DASHBOARD)) == []


@pytest.mark.parametrize(
    "place", [(), ("panels", 1), ("panels", 1, "targets", 0), ("panels", 1, "options")]
)
def test_a_word_that_is_not_would_be_found(place):
    wrong = copy.deepcopy(DASHBOARD)
    inner = wrong
    for key in place:
        inner = inner[key]
    inner["misspelt"] = True
    [found] = not_understood(wrong, read_and_written(wrong))
    assert found.endswith("misspelt")


def test_it_is_what_a_current_grafana_writes():
    assert DASHBOARD["schemaVersion"] == Dashboard().schema_version


def test_it_is_not_tied_to_one_grafana():
    assert "id" not in DASHBOARD
    assert "__inputs" not in DASHBOARD
    assert VARIABLES["datasource"]["type"] == "datasource"
    assert VARIABLES["datasource"]["query"] == "prometheus"
    for panel in PANELS:
        assert panel["datasource"] == SOURCE
        assert all(target["datasource"] == SOURCE for target in panel["targets"])
    queries = [variable for variable in VARIABLES.values() if variable["type"] == "query"]
    assert all(variable["datasource"] == SOURCE for variable in queries)


def test_each_panel_has_an_id_and_says_what_it_shows():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"].get("unit") or panel["type"] == "heatmap"
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) >= 1


def squares(panel):
    place = panel["gridPos"]
    return {
        (x, y)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    }


def test_no_panel_covers_another():
    for one, other in combinations(DASHBOARD["panels"], 2):
        assert not squares(one) & squares(other), (one["title"], other["title"])
    covered = set().union(*(squares(panel) for panel in DASHBOARD["panels"]))
    height = max(y for _, y in covered) + 1
    assert covered == {(x, y) for x in range(24) for y in range(height)}


def test_grafana_is_told_where_to_find_it():
    place = DEPLOY / "grafana/provisioning"
    [source] = yaml.safe_load((place / "datasources/prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    [provider] = yaml.safe_load((place / "dashboards/whoami-router.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/etc/grafana/dashboards"
