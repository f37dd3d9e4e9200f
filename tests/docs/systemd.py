"""A stand-in for systemd, where process 1 is something else: it does what unit files say.

Run as process 1 of a process namespace (``systemd.py init``) it waits for what
``systemd.py systemctl`` and ``systemd.py journalctl`` are told. It knows
what the units in the documents need: sockets and the services behind them, environment files,
users, the commands before, at and instead of a start. It confines nothing. It needs the standard
library only, as it runs without our environment.
"""

import grp
import os
import pwd
import re
import resource
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

UNIT_DIRECTORIES = (Path("/etc/systemd/system"), Path("/lib/systemd/system"))
CONTROL = Path("/run/stand-in-for-systemd")
LOGS = Path("/var/log/stand-in-for-systemd")
DYNAMIC_USER = 61184  # the first of those that systemd gives away
SECONDS = 20


class Failed(Exception):  # noqa: N818  (as systemctl says it)
    """A unit cannot be found or started; one line."""


class Unit:
    """A unit file with its drop-ins, ``%i`` filled in."""

    def __init__(self, name):
        self.name = name
        stem, _, suffix = name.rpartition(".")
        template, at, instance = stem.partition("@")
        file = f"{template}@.{suffix}" if at else name
        places = [directory / file for directory in UNIT_DIRECTORIES]
        found = next((place for place in places if place.exists()), None)
        if found is None:
            raise Failed(f"Unit {name} not found.")
        self._settings = []
        dropped_in = [
            path
            for place in places
            for path in sorted((place.parent / f"{place.name}.d").glob("*.conf"))
        ]
        for path in (found, *dropped_in):
            self._read(path.read_text().replace("%i", instance))

    def _read(self, text):
        for line in re.sub(r"\\\n", " ", text).splitlines():
            key, equals, value = line.partition("=")
            if line[:1] in "#;[" or not equals:
                continue
            if not value:  # clears what was said before
                self._settings = [each for each in self._settings if each[0] != key]
            self._settings.append((key, value))

    def all(self, key):
        return [value for name, value in self._settings if name == key and value]

    def one(self, key, default=None):
        return (self.all(key) or [default])[-1]


def environment(unit):
    result = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    for line in unit.all("Environment"):
        result.update(word.split("=", 1) for word in shlex.split(line))
    for file in unit.all("EnvironmentFile"):
        path = Path(file.removeprefix("-"))
        if not path.exists():
            if file.startswith("-"):
                continue
            raise Failed(f"{path} is missing.")
        for line in path.read_text().splitlines():
            if re.match(r"[A-Za-z_]\w*=", line):
                name, value = line.split("=", 1)
                result[name] = " ".join(shlex.split(value))
    return result


def words(command, variables):
    """Return the words of an Exec line: ``$A`` is several, ``${A}`` one, ``$$`` a ``$``."""
    result = []
    for word in shlex.split(command.lstrip("-@:+!")):
        if re.fullmatch(r"\$\w+", word):
            result += variables.get(word[1:], "").split()
            continue
        result.append(
            re.sub(
                r"\$(?:(\$)|\{(\w+)\})",
                lambda found: found[1] or variables.get(found[2], ""),
                word,
            )
        )
    return result


class Service:
    """A service, and the sockets that it gets."""

    def __init__(self, name):
        self.name = name
        self.sockets = []
        self.pid = None
        self.wanted = False
        self._due = 0.0

    def listen(self):
        """Open the sockets of the unit of the same name."""
        unit = Unit(f"{self.name}.socket")
        for address in unit.all("ListenStream"):
            if address.startswith("/"):
                path = Path(address)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
                listener = socket.socket(socket.AF_UNIX)
                listener.bind(address)
                os.chown(
                    path,
                    pwd.getpwnam(unit.one("SocketUser", "root")).pw_uid,
                    grp.getgrnam(unit.one("SocketGroup", "root")).gr_gid,
                )
                path.chmod(int(unit.one("SocketMode", "0666"), 8))
            else:
                host, port = address.rsplit(":", 1)
                listener = socket.socket()
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((host, int(port)))
            listener.listen(int(unit.one("Backlog", "128")))
            self.sockets.append(listener)

    def start(self):
        """Start it, if it does not run; raises Failed."""
        self.wanted = True
        if self.pid is not None:
            return
        unit = Unit(f"{self.name}.service")
        variables = environment(unit)
        for command in unit.all("ExecCondition"):
            if self._run(unit, command, variables) != 0:
                self.wanted = False
                return
        for command in unit.all("ExecStartPre"):
            if self._run(unit, command, variables) != 0:
                raise Failed(f"{self.name}: {command} failed, see journalctl -u {self.name}")
        if unit.one("Type") == "forking":
            if self._run(unit, unit.one("ExecStart"), variables) != 0:
                raise Failed(f"{self.name} failed, see journalctl -u {self.name}")
            file = Path(unit.one("PIDFile"))
            deadline = time.monotonic() + SECONDS
            while not (file.exists() and file.read_text().strip()):
                if time.monotonic() > deadline:
                    raise Failed(f"{self.name} wrote no {file}")
                time.sleep(0.02)
            self.pid = int(file.read_text())
        else:
            self.pid = self._spawn(unit, unit.one("ExecStart"), variables)

    def _run(self, unit, command, variables):
        _, status = os.waitpid(self._spawn(unit, command, variables), 0)
        return os.waitstatus_to_exitcode(status)

    def _spawn(self, unit, command, variables):
        log = os.open(LOGS / f"{self.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        arguments = words(command, variables)
        pid = os.fork()
        if pid:
            os.close(log)
            return pid
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            # Out of the way of where they go first.
            high = [
                os.dup2(each.fileno(), 100 + number) for number, each in enumerate(self.sockets)
            ]
            for number, descriptor in enumerate(high):
                os.dup2(descriptor, 3 + number)  # and these are inheritable
            os.closerange(3 + len(high), 1024)
            if high:
                variables |= {"LISTEN_FDS": str(len(high)), "LISTEN_PID": str(os.getpid())}
            if limit := unit.one("LimitNOFILE"):
                _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
                files = min(int(limit), most)  # nobody may have more here
                resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
            if unit.one("DynamicUser") == "yes":
                os.setgroups([])
                os.setgid(DYNAMIC_USER)
                os.setuid(DYNAMIC_USER)
            elif user := unit.one("User"):
                os.initgroups(user, pwd.getpwnam(user).pw_gid)
                os.setgid(pwd.getpwnam(user).pw_gid)
                os.setuid(pwd.getpwnam(user).pw_uid)
            for number in (signal.SIGTERM, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            os.execve(arguments[0], arguments, variables)
        except BaseException:  # noqa: BLE001  (nothing of this process may go on in its child)
            traceback.print_exc()
        os._exit(203)

    def reload(self):
        unit = Unit(f"{self.name}.service")
        variables = environment(unit) | {"MAINPID": str(self.pid)}
        command = unit.one("ExecReload").replace("$MAINPID", "${MAINPID}")
        if self._run(unit, command, variables) != 0:
            raise Failed(f"{self.name}: reload failed")

    def stop(self):
        """End it, and return once it has ended."""
        self.wanted = False
        if self.pid is None:
            return
        os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + SECONDS
        while self.pid is not None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
            reap()
            time.sleep(0.02)

    def ended(self):
        self.pid = None
        self._due = time.monotonic() + 1  # RestartSec

    def see(self):
        """Start it if it is to run, or if somebody has come to its sockets."""
        if self.pid is not None or time.monotonic() < self._due:
            return
        called = self.sockets and select.select(self.sockets, [], [], 0)[0]
        if self.wanted or called:
            try:
                self.start()
            except Failed:
                self._due = time.monotonic() + 1


SERVICES = {}


def reap():
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        for service in SERVICES.values():
            if service.pid == pid:
                service.ended()


def service(name):
    return SERVICES.setdefault(name, Service(name))


def systemctl(arguments):
    """Do what systemctl would, and return what it would print; raises Failed."""
    verb, *names = [word for word in arguments if not word.startswith("-")]
    if verb == "daemon-reload" or (verb == "enable" and "--now" not in arguments):
        return ""
    act = {"start": start, "enable": start, "stop": stop, "restart": restart, "reload": reload}
    for name in names:
        unit = name if name.endswith((".socket", ".service")) else f"{name}.service"
        Unit(unit)  # or say that there is none
        act[verb](service(unit.rpartition(".")[0]), sockets=unit.endswith(".socket"))
    return ""


def start(one, *, sockets):
    if not sockets:
        one.start()
    elif not one.sockets:
        one.listen()


def stop(one, *, sockets):
    one.stop()
    while sockets and one.sockets:
        one.sockets.pop().close()


def restart(one, *, sockets):
    stop(one, sockets=sockets)
    start(one, sockets=sockets)


def reload(one, *, sockets):
    assert not sockets
    one.reload()


def journalctl(arguments):
    name = arguments[arguments.index("-u") + 1]
    log = LOGS / f"{name.removesuffix('.service')}.log"
    return log.read_text() if log.exists() else ""


COMMANDS = {"systemctl": systemctl, "journalctl": journalctl}


def init():
    LOGS.mkdir(parents=True, exist_ok=True)
    CONTROL.unlink(missing_ok=True)
    control = socket.socket(socket.AF_UNIX)
    control.bind(str(CONTROL))
    control.listen()
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([control, sys.stdin], [], [], 0.05)
        if sys.stdin in ready:
            return  # who started us has ended
        reap()
        for each in list(SERVICES.values()):
            each.see()
        if control in ready:
            client, _ = control.accept()
            with client, client.makefile("rw") as stream:
                program, *arguments = stream.readline().rstrip("\n").split("\0")
                try:
                    answer = "0" + COMMANDS[program](arguments)
                except Failed as exc:
                    answer = f"1{exc}\n"
                stream.write(answer)


def ask(program, arguments):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(CONTROL))
        client.sendall("\0".join([program, *arguments]).encode() + b"\n")
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
    text = answer.decode()
    print(text[1:], end="", file=sys.stdout if text[:1] == "0" else sys.stderr)
    return 0 if text[:1] == "0" else 1


def apt_get(arguments):
    """Do as if the packages, which are there, were installed now."""
    verb, *packages = [word for word in arguments if not word.startswith("-")]
    if verb != "install":
        return 0
    command = ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Abbrev}\n"]
    if subprocess.run([*command, *packages], check=False).returncode != 0:
        return 1
    # Debian starts what it installs.
    units = [name for name in packages if (UNIT_DIRECTORIES[1] / f"{name}.service").exists()]
    return ask("systemctl", ["start", *units])


if __name__ == "__main__":
    called_as, *given = sys.argv[1:]
    if called_as == "init":
        init()
        sys.exit()
    sys.exit(apt_get(given) if called_as == "apt-get" else ask(called_as, given))
