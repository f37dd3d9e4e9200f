"""Whether whoami-router answers where nginx asks it, and whether nginx may connect there."""

import grp
import os
import pwd
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from whoami_router.check.findings import Finding, note, wrong
from whoami_router.check.http_get import Answer, NoAnswer, Reason, get
from whoami_router.check.nginx.site import PART, Site
from whoami_router.settings import Tcp, Unix

_SECONDS = 2.0

_LAST_PORT = 65535
_NO_CONTENT = 204
_LOOPBACK = ("127.", "::1", "localhost")

# What a router that hangs and a network that is not ours have in common.
_FAR = (Reason.LATE, Reason.UNREACHABLE)

_BY_TOKEN = "every request goes by its token"  # noqa: S105  (no secret)
_LESS = "one process less to ask"

_ACL = "system.posix_acl_access"


@dataclass(frozen=True, slots=True)
class Server:
    """An address that nginx asks, as it is written, and where."""

    text: str
    place: str


@dataclass(frozen=True, slots=True)
class User:
    """As whom nginx's workers run."""

    name: str
    uid: int
    groups: frozenset[int]


def look(site: Site, servers: Sequence[Server], *, right: str | None) -> Iterator[Finding]:
    """Yield where nobody answers, and where nginx is not let in.

    ``right`` is where a router is known to listen, None if that is not known.
    """
    found = {one: _problem(one, right) for one in servers}
    all_away = all(one is not None and one.status == "wrong" for one in found.values())
    for server, finding in found.items():
        if finding is None:
            yield from _not_let_in(site, server)
        elif finding.status == "wrong":
            what = f"{finding.what}: {_BY_TOKEN if all_away else _LESS}"
            yield wrong(PART, what, finding.remedy or "", finding.place)
        else:
            yield finding


def address(text: str) -> Tcp | Unix | None:
    """Return what the address of a server line means, None if nobody can connect to that."""
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:"))
        return Unix(path) if path.is_absolute() and "\0" not in text else None
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):  # [::1] has a colon, too
        host, port = text, "80"
    if not (port.isascii() and port.isdigit() and int(port) <= _LAST_PORT):
        return None
    host = host.removeprefix("[").removesuffix("]")
    return Tcp(host, int(port)) if re.fullmatch(r"[\w.:-]+", host, re.ASCII) else None


# Who answers.


def _problem(server: Server, right: str | None) -> Finding | None:
    where = address(server.text)
    if where is None:
        return _untold(server, "this is no address to connect to")
    there = f"server {right};, as whoami-router has it" if right else "correct the address"
    try:
        answer = get(where, "/resolve", timeout=_SECONDS)
    except NoAnswer as exc:
        if _is_elsewhere(where, exc.reason):
            return _untold(server, str(exc))
        what = f"nginx asks {server.text}: {exc}"
        return wrong(PART, what, f"start whoami-router there, or {there}", server.place)
    except ValueError as exc:  # a name that no host can have
        return _untold(server, str(exc))
    if _is_ours(answer):
        return None
    what = f"nginx asks {server.text}, which is no whoami-router: it answered {answer.status}"
    return wrong(PART, what, there, server.place)


def _is_ours(answer: Answer) -> bool:
    named = answer.headers.get("x-user-identifier-source")
    return answer.status == _NO_CONTENT and named is not None


def _is_elsewhere(where: Tcp | Unix, reason: Reason) -> bool:
    """Return whether this may say more of where this command runs than of nginx's machine."""
    if reason in (Reason.UNKNOWN_HOST, Reason.FORBIDDEN):
        return True
    if isinstance(where, Tcp):
        return reason in _FAR and not where.host.startswith(_LOOPBACK)
    # Such a directory is missing if the service is. Any other may be a container's.
    in_run = where.path.is_relative_to("/run") or where.path.is_relative_to("/var/run")
    return reason is Reason.MISSING and not in_run and not where.path.parent.is_dir()


def _untold(server: Server, why: str) -> Finding:
    return note(
        PART,
        f"whether whoami-router answers at {server.text} cannot be told from here: {why}",
        "run this where nginx runs, as root",
        server.place,
    )


# Who is let in.


def _not_let_in(site: Site, server: Server) -> Iterator[Finding]:
    where = address(server.text)
    user = nginx_user(site) if isinstance(where, Unix) else None
    if user is None or not isinstance(where, Unix):
        return
    closed = closed_to(where.path, user)
    if closed is not None:
        yield wrong(
            PART,
            f"nginx runs as {user.name}, to whom {closed} is closed ({_rights(closed)}): "
            f"{_BY_TOKEN}",
            f"let {user.name} in by the group and mode of {closed} (systemd: SocketGroup=, "
            "SocketMode=0660), or have nginx run as another user",
            server.place,
        )


def closed_to(path: Path, user: User) -> Path | None:
    """Return the socket, or the directory above it, that a user lacks the right for.

    None if there is none, or if modes do not say it.
    """
    real = path.resolve()
    try:
        for one in (*reversed(real.parents), real):
            if _ACL in os.listxattr(one):
                return None
            status = one.stat()
            wanted = stat.S_IWOTH if one == real else stat.S_IXOTH
            if status.st_uid == user.uid:
                wanted <<= 6
            elif status.st_gid in user.groups:
                wanted <<= 3
            if not status.st_mode & wanted:
                return one
    except OSError:
        return None
    return None


def _rights(path: Path) -> str:
    status = path.stat()
    return f"owner {status.st_uid}, group {status.st_gid}, mode {stat.S_IMODE(status.st_mode):04o}"


def nginx_user(site: Site) -> User | None:
    """Return as whom nginx's workers run if root starts it; None if that cannot be told."""
    if os.geteuid() != 0:
        return None  # then nginx's master may be no root, either, and has no choice
    lines = [one for one in site.configuration.directives if one.name == "user" and one.args]
    names = lines[-1].args if lines else _built_in_user()
    if names is None:
        return None
    name, group = names[0], names[-1]
    try:
        found = pwd.getpwnam(name)
        groups = os.getgrouplist(name, grp.getgrnam(group).gr_gid)
    except (KeyError, OSError):
        return None
    return None if found.pw_uid == 0 else User(name, found.pw_uid, frozenset(groups))


def _built_in_user() -> tuple[str, str] | None:
    """Return the user and the group that nginx was built with."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None:
        return None
    try:
        said = subprocess.run(  # noqa: S603  (nginx, which says how it was built)
            [program, "-V"], capture_output=True, text=True, timeout=_SECONDS, check=False
        ).stderr
    except (OSError, subprocess.SubprocessError):
        return None
    built: dict[str, str] = dict(re.findall(r"--(user|group)=([^\s']+)", said))
    if "configure arguments:" not in said:
        return None
    if "user" not in built:
        # As its configure script: the group is what this system calls it.
        try:
            grp.getgrnam("nobody")
        except KeyError:
            return "nobody", built.get("group", "nogroup")
        return "nobody", built.get("group", "nobody")
    return built["user"], built.get("group", built["user"])
