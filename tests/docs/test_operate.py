"""docs/operate.md, troubleshooting.md and security.md: their commands, and their tables."""

import ast
import re

import httpx
import pytest
import yaml

from tests.docs.blocks import ROOT
from tests.docs.conftest import MAIN
from tests.stack.matrix import Matrix
from tests.stack.router import Router
from whoami_router.resolver import Source

OPERATE = (ROOT / "docs/operate.md").read_text()


def test_operator_asks_what_the_document_says(marked, followed):
    users = "".join(f"@user{number}:example.org\n" for number in range(1000))
    followed.machine.path("/root/users").write_text(users)
    for block in marked:
        followed.machine.follow(block)


def test_troubleshooter_asks_what_the_document_says(marked, followed):
    with followed.machine.network(), Matrix(f"http://{MAIN}") as matrix:
        device = matrix.log_in("alice", device_id="tablet")
    token = followed.machine.path("/root/token")
    token.touch(0o600)
    token.write_text(device.token)
    said = "".join(followed.machine.follow(block) for block in marked)
    assert re.search(r'^ *\d+ "source":"whoami"$', said, re.MULTILINE)
    of_alice = r'^ *\d+ "source":"whoami",.*"upstream":"127\.0\.0\.1:8083"$'
    assert re.search(of_alice, said, re.MULTILINE)


def test_unit_is_confined(marked, followed):
    for block in marked:
        followed.machine.follow(block)


def test_second_process_has_sockets_of_its_own(marked, followed):
    machine = followed.machine
    machine.follow(marked.take())
    for number in "12":
        listen = f"--listen unix:/run/whoami-router-{number}/sock"
        machine.run(
            f"whoami-router check --only router {listen} --admin-listen 127.0.0.1:901{number}"
        )


def rows(text, heading):
    """Return the cells of the table below a heading, by the words in backticks of the first."""
    [section] = re.findall(rf"^##+ {heading}\n(.*?)(?=^##|\Z)", text, re.DOTALL | re.MULTILINE)
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    return {row[0].strip("`"): row[1:] for row in cells}


@pytest.fixture(scope="module")
def exposition(tmp_path_factory):
    with Router(tmp_path_factory.mktemp("router"), "http://127.0.0.1:1") as router:
        return httpx.get(f"http://{router.address}/metrics", trust_env=False).text


def samples(exposition):
    """Return each metric of ours and the names of its labels, as the table writes it."""
    found = set()
    for name, labels in re.findall(r"^(whoami_router_\w+)(\{.*\})? ", exposition, re.MULTILINE):
        names = [each for each in re.findall(r'(\w+)="', labels) if each != "le"]
        of = f"{{{'=,'.join(names)}=}}" if names else ""
        found.add(re.sub("_(bucket|sum|count)$", "", name) + of)
    return found


def test_every_metric_is_explained_and_every_one_explained_is_there(exposition):
    program = (ROOT / "deploy/mtail/whoami-router.mtail").read_text()
    counted = {
        f"{name}{{{'=,'.join(labels.split(', '))}=}}" if labels else name
        for name, labels in re.findall(r"^counter (\w+)(?: by (.*))?$", program, re.MULTILINE)
    }
    assert counted
    assert rows(OPERATE, "Metrics").keys() == samples(exposition) | counted


def test_every_source_and_every_outcome_is_explained(exposition):
    assert rows(OPERATE, "Sources").keys() == {*map(str, Source), "error"}
    outcomes = re.findall(
        r'^whoami_router_lookups_total\{outcome="(\w+)"\}', exposition, re.MULTILINE
    )
    assert rows(OPERATE, "Outcomes").keys() == {*outcomes} != set()


def alerts():
    for file in (ROOT / "deploy/prometheus").glob("*.rules.yml"):
        for group in yaml.safe_load(file.read_text())["groups"]:
            yield from (rule for rule in group["rules"] if "alert" in rule)


def test_every_alert_is_explained_where_it_says():
    [section] = re.findall(r"^## Alerts\n(.*?)(?=^## )", OPERATE, re.DOTALL | re.MULTILINE)
    explained = re.findall(r"^### (\w+)$", section, re.MULTILINE)
    assert explained == [rule["alert"] for rule in alerts()] != []
    for rule in alerts():
        anchor = rule["alert"].lower()  # which is how a heading's is made
        assert rule["annotations"]["runbook_url"].endswith(f"docs/operate.md#{anchor}")


@pytest.mark.parametrize("word", ["**Users notice**", "**Look", "**Do"])
def test_every_alert_says_what_users_notice_where_to_look_and_what_to_do(word):
    texts = re.split(r"^### Whoami\w+$", OPERATE, flags=re.MULTILINE)[1:]
    texts[-1] = texts[-1].partition("\n## ")[0]
    assert [text for text in texts if word not in text] == []


def test_every_line_of_the_log_is_explained():
    logged = {}
    for file in (ROOT / "whoami_router").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="logger"), attr=level),
                    args=[ast.Constant(value=str(event)), *_],
                ):
                    logged[event] = level
                case ast.Call(
                    func=ast.Attribute(attr="report"), args=[ast.Constant(value=str(event)), *_]
                ):
                    logged[event] = "error"  # whoami_router/defects.py
    assert {event: cells[0] for event, cells in rows(OPERATE, "Logs").items()} == logged != {}
