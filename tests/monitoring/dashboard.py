"""What stands in the dashboard."""

import json

from tests.monitoring.programs import DEPLOY

FILE = DEPLOY / "grafana/whoami-router.json"
DASHBOARD = json.loads(FILE.read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}

VALUES = {
    "$__rate_interval": "1m",  # what Grafana takes for a scrape_interval of 15 s
    "$instance": ".+",
    "$nginx": "whoami-router-mtail",
    "$job": "whoami-router",
}


def filled_in(expression: str) -> str:
    """Return an expression with values for its variables, as Grafana sends it."""
    for variable, value in VALUES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, expression
    return expression


def expressions() -> dict[str, str]:
    """Return all expressions of the dashboard, by where they stand."""
    return {
        f"{panel['title']} {target['refId']}": filled_in(target["expr"])
        for panel in PANELS
        for target in panel["targets"]
    }
