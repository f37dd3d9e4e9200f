"""The contenders: one nginx with the shipped files, and the ways in which it may find the user."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.measure import CPUS, children, cpu_seconds, pin
from bench.standins import NGINX
from tests.stack.nginx import EDGE_CACHE, Nginx, temporary_files_in
from tests.stack.process import Process, accepts, free_port, wait_until

_HERE = Path(__file__).parent

Edit = tuple[str, str, str]
"""A file, a text in it and what takes its place."""


def _answer(lines: str) -> Edit:
    """Have nginx answer its auth request itself."""
    return ("snippets/whoami_router.conf", "proxy_pass http://whoami_router/resolve;", lines)


_NO_AUTH_REQUEST: Edit = (
    "snippets/route_by_user.conf",
    "auth_request /_whoami_router/resolve;",
    "",
)
# The name of a user as it stands in a token of Synapse's, not decoded.
_TOKEN_MAP: Edit = (
    "conf.d/maps.conf",
    """\
map $user_identifier $sync_routing_key {
    ""      $token_routing_key;
    default $user_identifier;
}
""",
    """\
map $http_authorization $sync_routing_key {
    default                                    $user_in_query;
    "~^Bearer syt_(?<user_in_header>[^_ ]+)_" $user_in_header;
}
map $arg_access_token $user_in_query {
    default                        "";
    "~^syt_(?<native_user>[^_]+)_" $native_user;
}
""",
)
# The answer comes from no upstream; it is in the headers that the subrequest "sends".
_OWN_HEADERS: Edit = ("snippets/route_by_user.conf", "$upstream_http_x_", "$sent_http_x_")
_LUA_LOOKUP: Edit = (
    "snippets/whoami_router.conf",
    "location @whoami_router_unavailable {",
    """\
location = /bench/whoami {
    internal;
    include snippets/proxy.conf;
    proxy_pass http://whoami_router/_matrix/client/v3/account/whoami;
}

location @whoami_router_unavailable {""",
)


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to find the user: what it changes in the shipped files, and what is known of it.

    ``asks`` is whom nginx asks in whoami-router's place: "router", "constant", "whoami" or
    nobody. ``by_user``: a user's requests reach one worker, whatever the token. ``remembers``:
    it has to be asked about a token once before it knows it; with ``edge`` what it knows is in
    nginx's cache. ``module`` is what nginx needs for it, ``http`` are lines for its http context.
    """

    name: str
    edits: Sequence[Edit] = ()
    asks: str | None = "router"
    by_user: bool = True
    remembers: bool = False
    edge: bool = False
    module: str | None = None
    http: str = ""


CONTENDERS = (
    Contender("no auth_request", [_NO_AUTH_REQUEST], asks=None, by_user=False),
    Contender("return 204", [_answer("return 204;")], asks=None, by_user=False),
    Contender("token map", [_NO_AUTH_REQUEST, _TOKEN_MAP], asks=None),
    Contender("router", remembers=True),
    Contender("edge cache", [EDGE_CACHE], remembers=True, edge=True),
    Contender("constant ASGI", asks="constant"),
    Contender(
        "njs",
        [_answer("js_content bench.resolve;"), _OWN_HEADERS],
        asks="whoami",
        remembers=True,
        module="ngx_http_js_module.so",
        http=f"""\
js_import bench from {_HERE}/njs/resolve.js;
js_shared_dict_zone zone=users:64m timeout=1d evict;
js_var $bench_whoami {{whoami}};
""",
    ),
    Contender(
        "Lua",
        [
            _answer("content_by_lua_block {\n" + (_HERE / "lua/resolve.lua").read_text() + "}"),
            _OWN_HEADERS,
            _LUA_LOOKUP,
        ],
        asks="whoami",
        remembers=True,
        module="ngx_http_lua_module.so",
        http="lua_shared_dict users 64m;\n",
    ),
)


class CannotRun(Exception):  # noqa: N818  (the name says what is the matter)
    """The nginx at hand lacks what a contender needs."""


class Site(Nginx):
    """A contender's nginx: one worker process, alone on the first processor."""

    def __init__(
        self,
        directory: Path,
        contender: Contender,
        *,
        asked: str,
        whoami: str,
        workers: Sequence[str],
    ) -> None:
        directory.mkdir()
        http = contender.http.format(whoami=whoami)
        modules = _load_modules(contender.module, http) if contender.module else ""
        super().__init__(
            directory,
            {
                "whoami_router": [asked],
                "synapse_main": workers,
                "synapse_sync": workers,
                "synapse_initial_sync": workers,
            },
            edits=[
                ("nginx.conf", "worker_processes auto;", f"{modules}worker_processes 1;"),
                *contender.edits,
            ],
            program=NGINX,
        )
        (self.files / "conf.d/bench.conf").write_text(http)
        self.edge = directory / "edge"
        self._worker = 0

    def start(self) -> "Site":
        """Start nginx and return once its worker runs, where it belongs."""
        super().start()
        wait_until(self._find_worker, "nginx has a worker process")
        pin([self.pid, *children(self.pid)], CPUS[:1])
        return self

    def _find_worker(self) -> bool:
        for pid in children(self.pid):
            # The others look after the edge cache, now and then.
            if b"worker process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                self._worker = pid
        return bool(self._worker)

    def cpu_seconds(self) -> float:
        """Return the worker's time on a processor."""
        return cpu_seconds([self._worker])


class Constant(Process):
    """The constant ASGI function on a free port."""

    def __init__(self, directory: Path) -> None:
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        super().__init__(
            "the constant ASGI function",
            [sys.executable, "-m", "bench.constant", str(port)],
            directory / "constant.log",
            ready=lambda: accepts(self.address),
            environment={"PYTHONPATH": str(_HERE.parent)},
        )


def _load_modules(module: str, http: str) -> str:
    """Return the lines that load a module; none where it is built in. Raise CannotRun."""
    version = _nginx("-V")[1]
    found = re.search(r"--modules-path=(\S+)", version)
    place = found[1] if found else "modules"
    load = f"load_module {place}/{module};\n"
    if "lua" in module:  # which needs another
        load = f"load_module {place}/ndk_http_module.so;\n{load}"
    for lines in ("", load):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "nginx.conf"
            path.write_text(
                f"{lines}pid {directory}/pid;\nerror_log stderr emerg;\nevents {{}}\n"
                f"http {{\n{http}{temporary_files_in(directory)}}}\n"
            )
            status, said = _nginx("-t", "-c", str(path))
        if status == 0:
            return lines
    reason = re.search(r"\[emerg\] (?:\d+#\d+: )?(.*?)(?= \(| in /|$)", said, re.MULTILINE)
    raise CannotRun(reason[1] if reason else said)


def _nginx(*options: str) -> tuple[int, str]:
    """Return nginx's exit status and what it said."""
    ended = subprocess.run(
        [NGINX, "-e", "stderr", *options], check=False, capture_output=True, text=True, cwd="/"
    )
    return ended.returncode, ended.stderr
