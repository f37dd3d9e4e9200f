"""The commands of README.md, on a machine that has what they need."""

from tests.docs.conftest import MAIN
from tests.stack.matrix import Matrix
from tests.stack.process import accepts, wait_until

SNIPPET = "/etc/nginx/snippets/route_by_user.conf"
OFF, ON = "#include snippets/debug_headers.conf;", "include snippets/debug_headers.conf;"


def test_reader_sees_what_the_document_says(marked, followed):
    machine = followed.machine
    install, serve = marked.take("whoami-router serve").commands.splitlines()
    machine.run(f"PATH=/opt/whoami-router/bin:$PATH\n{install}", network=True)
    process = machine.run(f"{serve} > /dev/null 2>&1 & echo $!").strip()
    with machine.network(), Matrix(f"http://{MAIN}") as matrix:
        wait_until(lambda: accepts("127.0.0.1:9009"), "the router listens")
        device = matrix.log_in("alice", device_id="book")
    machine.follow(marked.take("/resolve"), TOKEN=device.token)
    machine.run(f"sed -i 's|^{OFF}|{ON}|' {SNIPPET} && systemctl reload nginx")
    machine.follow(marked.take("/sync"), TOKEN=device.token)
    machine.follow(marked.take("whoami-router where"))
    machine.follow(marked.take("whoami-router check"))
    machine.run(f"sed -i 's|^{ON}|{OFF}|' {SNIPPET} && systemctl reload nginx; kill {process}")
