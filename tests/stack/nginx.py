"""nginx with the shipped files."""

import re
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tests.stack.process import Process, accepts, free_port

SHIPPED = Path(__file__).parents[2] / "nginx"

POOLS = re.findall(
    r"^upstream synapse_(\w+)", (SHIPPED / "conf.d/upstreams.conf").read_text(), re.MULTILINE
)
"""The names of the pools of Synapse's processes, without their prefix."""

# Edits that an administrator may make: a line each.
EDGE_CACHE = (
    "snippets/whoami_router.conf",
    "#include snippets/edge_cache.conf;",
    "include snippets/edge_cache.conf;",
)
DEBUG_HEADERS = (
    "snippets/route_by_user.conf",
    "#include snippets/debug_headers.conf;",
    "include snippets/debug_headers.conf;",
)
SINGLE_SIGN_ON = (
    "conf.d/upstreams.conf",
    "    #sso                       synapse_sso;",
    "    sso                        synapse_sso;",
)
ACCESS_LOG = (
    "snippets/access_log.conf",
    "\naccess_log off;",
    "\naccess_log /dev/stdout routing;",
)


def check(directory: Path, *replacements: Path) -> str:
    """Return what ``nginx -t`` says to the shipped files, installed in ``directory``.

    ``replacements`` take the place of the files of their names. The temporary files
    are in ``directory``, too: in /tmp they would be in the way of another user's nginx.
    """
    files = shutil.copytree(SHIPPED, directory / "nginx")
    for file in replacements:
        [replaced] = files.glob(f"*/{file.name}")
        shutil.copy(file, replaced)
    keep_within(directory, files)
    return subprocess.run(
        ["nginx", "-e", "stderr", "-t", "-c", files / "nginx.conf"],
        check=False,
        capture_output=True,
        text=True,
        cwd="/",
    ).stderr


def keep_within(directory: Path, files: Path) -> None:
    """Have nginx write to ``directory`` what the shipped files write elsewhere."""
    for file, elsewhere, place in (
        ("nginx.conf", "/tmp/nginx", "temp"),
        ("conf.d/edge_cache.conf", "/dev/shm/whoami_router", "edge"),
    ):
        text = (files / file).read_text()
        assert elsewhere in text, file
        (files / file).write_text(text.replace(elsewhere, str(directory / place)))


def temporary_files_in(directory: Path | str) -> str:
    """Return the lines for an http block that keep nginx's temporary files in ``directory``.

    It makes a directory for each kind, used or not, and an ordinary user may not make the built-in
    ones.
    """
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return "".join(f"{kind}_temp_path {directory}/{kind};\n" for kind in kinds)


class Nginx(Process):
    """The shipped files, with addresses of its own in conf.d/upstreams.conf.

    ``upstreams`` are the workers there are; the lines of groups without workers are deleted, as an
    administrator would. Besides these only the port it listens on and the place of its temporary
    files differ, so that several can run at once. ``edits`` are further replacements, (file, old,
    new) each.
    """

    def __init__(
        self,
        directory: Path,
        upstreams: Mapping[str, Sequence[str]],
        *,
        edits: Sequence[tuple[str, str, str]] = (),
        user: str | None = None,
        program: str = "nginx",
    ) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.address}"
        self.files = directory / "nginx"
        shutil.copytree(SHIPPED, self.files)
        for name, servers in upstreams.items():
            self._set_servers(name, servers)
        self._keep_pools(upstreams)
        self.edit("conf.d/synapse.conf", "listen 8080;", f"listen {self.address};")
        keep_within(directory, self.files)
        for file, old, new in edits:
            self.edit(file, old, new)
        super().__init__(
            "nginx",
            [program, "-e", "stderr", "-c", self.files / "nginx.conf", "-g", "daemon off;"],
            directory / "nginx.log",
            ready=lambda: accepts(self.address),
            user=user,
        )

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace a text that must be there; before the start."""
        path = self.files / file
        text = path.read_text()
        assert old in text, f"{file} has no {old!r}"
        path.write_text(text.replace(old, new))

    def _set_servers(self, upstream: str, servers: Sequence[str]) -> None:
        path = self.files / "conf.d/upstreams.conf"
        text = path.read_text()
        found = re.search(
            rf"upstream {upstream} {{[^}}]*?((?:    server \S+?(?P<more>(?: [^;]*)?);\n)+)", text
        )
        assert found, f"no upstream {upstream}"
        lines = "".join(f"    server {address}{found['more']};\n" for address in servers)
        path.write_text(text[: found.start(1)] + lines + text[found.end(1) :])

    def _keep_pools(self, names: Collection[str]) -> None:
        path = self.files / "conf.d/upstreams.conf"
        lines = path.read_text().splitlines(keepends=True)
        row = re.compile(r"    \w+ +(synapse_\w+);\n")
        path.write_text(
            "".join(line for line in lines if not (m := row.fullmatch(line)) or m[1] in names)
        )
