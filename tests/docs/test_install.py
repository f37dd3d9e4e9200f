"""docs/install.md, followed word for word."""

import json
import re
from contextlib import ExitStack

import httpx

from tests.docs.blocks import ROOT, blocks
from tests.fake_synapse import FakeSynapse, served
from tests.stack.process import accepts, wait_until

USERS = ("alice", "bob", "carol", "dave")


def query(machine, expression):
    """Return what Prometheus knows: for the values of all labels their value."""
    answer = machine.run(
        f"curl -sS http://127.0.0.1:9090/api/v1/query --data-urlencode 'query={expression}'"
    )
    return {
        tuple(value for name, value in sorted(each["metric"].items())): float(each["value"][1])
        for each in json.loads(answer)["data"]["result"]
    }


def test_newcomer_has_routed_and_watched_syncs_of_each_user(followed):
    named = re.findall(r"^ *synapse_sync +(\S+)", followed.output("where @alice"), re.MULTILINE)
    took = [json.loads(line)["upstream"] for line in followed.output("tail -n 2").splitlines()]
    assert took == named * 2  # of alice's two devices

    asked = query(followed.machine, "sum by (source) (whoami_router_resolves_total)")
    logged = query(followed.machine, "sum by (source) (nginx_routed_requests_total)")
    assert asked["whoami",] == 2
    assert asked["cache",] >= 2 <= logged["cache",]
    assert query(followed.machine, 'count(ALERTS{alertstate="firing"})') == {}

    listening = followed.machine.run("ss --listening --tcp --numeric --no-header")
    elsewhere = {
        line.split()[3].rpartition(":")[2]
        for line in listening.splitlines()
        if " 127.0.0.1:" not in line
    }
    assert elsewhere == {"80", "8080"}  # of nginx: Debian's page, and what clients ask


def test_newcomer_may_do_steps_again(followed):
    again = ["python3 -m venv", "enable --now", "cp -r", "cat > /etc/nginx", "nginx -t"]
    for block in followed.blocks:
        if any(each in block.commands for each in again):
            # (Not from the network: what is there already is left as it is.)
            followed.machine.follow(block, network="pip" in block.commands)


def test_runbooks_are_where_the_document_says(followed):
    [place] = re.findall(r"`(/opt/\S*/docs)`", (ROOT / "docs/install.md").read_text())
    rules = followed.machine.path("/etc/prometheus/whoami-router.rules.yml").read_text()
    named = {*re.findall(r"docs/(\w+\.md)#", rules)}
    assert named
    assert all(followed.machine.path(f"{place}/{name}").exists() for name in named)


WATCH = """
cp /opt/whoami-router/share/whoami-router/mtail/whoami-router.mtail /etc/mtail/
printf 'LOGS=/var/log/nginx/synapse.log\\nHOST=127.0.0.1\\n' >> /etc/default/mtail
install -o www-data -g adm -m 640 /dev/null /var/log/nginx/synapse.log
systemctl start mtail
"""


def added(block):
    """Return a configuration with the lines of a ``diff`` block in it."""
    lines = block.text.splitlines()
    assert all(line[:1] in ("+", " ", "") for line in lines)
    return "\n".join(line[1:] for line in lines)


def test_own_nginx_routes_by_user_with_the_lines_of_the_document(marked, installed):
    machine = installed
    with ExitStack() as stack:
        synapse = FakeSynapse(owners={f"{user}-{n}": f"@{user}:h" for user in USERS for n in "12"})
        stack.enter_context(machine.network())
        asked = stack.enter_context(served(synapse))
        workers = {
            address: stack.enter_context(served(FakeSynapse(address)))
            for address in ("127.0.0.1:8083", "127.0.0.1:8084")
        }
        machine.path("/etc/default/whoami-router").write_text(
            f"WHOAMI_ROUTER_SYNAPSE_URL=http://{asked}\n"
        )
        machine.run("apt-get install nginx; systemctl enable --now whoami-router@1.socket")

        machine.run(WATCH)  # before there is anything to see, as mtail begins at the end of a file
        wait_until(lambda: accepts("127.0.0.1:3903"), "mtail reads the log")

        machine.follow(marked.take("nginx-files"))
        configuration = added(marked.take("your_sync_workers"))
        for documented, address in workers.items():
            assert documented in configuration
            configuration = configuration.replace(documented, address)
        machine.path("/etc/nginx/conf.d/synapse.conf").write_text(configuration)
        machine.follow(marked.take("nginx -t"))

        wait_until(lambda: accepts("127.0.0.1:8080"), "nginx has the configuration")
        with httpx.Client(base_url="http://127.0.0.1:8080", trust_env=False) as client:
            for user in USERS:
                took = {
                    client.get(
                        "/_matrix/client/v3/sync?access_token=hidden",
                        headers={"authorization": f"Bearer {user}-{n}"},
                    ).json()["server"]
                    for n in "12"
                }
                assert len(took) == 1
            counted = f'source="whoami"}} {2 * len(USERS)}\n'
            wait_until(
                lambda: counted in client.get("http://127.0.0.1:3903/metrics").text,
                "mtail has counted them",
            )
        routed, of_alice = (
            machine.follow(block)
            for block in blocks(ROOT / "docs/troubleshooting.md")
            if "/var/log/nginx/synapse.log" in block.commands
        )
    assert re.fullmatch(rf" *{2 * len(USERS)}  source=whoami\n", routed)
    assert re.search(r"\n *2 source=whoami upstream=127\.0\.0\.1:\d+ pool=syncs\n$", of_alice)
    log = machine.path("/var/log/nginx/synapse.log").read_text()
    assert log.count("source=whoami upstream=127.0.0.1:") == 2 * len(USERS)
    assert "hidden" not in log
