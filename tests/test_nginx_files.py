import os
import re
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stack.nginx import SHIPPED, keep_within
from whoami_router.cli import nginx_files as cli
from whoami_router.nginx_files import CannotWrite, write

ROOT = Path(__file__).parents[1]
# As an ordinary user: root may write everywhere.
WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def run(*arguments, prefix=(), **options):
    """Run the command as a process of its own."""
    return subprocess.run(
        [*prefix, sys.executable, "-m", "whoami_router", "nginx-files", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        **options,
    )


def texts(directory):
    """Return the content of each file below a directory, by its name there."""
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in directory.rglob("*")
        if not file.is_dir()
    }


def written(directory, **options):
    return [str(file.path.relative_to(directory)) for file in write(directory, **options)]


def reasons(directory, **options):
    with pytest.raises(CannotWrite) as raised:
        list(write(directory, **options))
    return raised.value.reasons


@pytest.fixture
def installed(tmp_path):
    """Return a directory that has all files."""
    directory = tmp_path / "nginx"
    written(directory)
    return directory


def test_whole_tree_is_written(tmp_path):
    directory = tmp_path / "new" / "nginx"
    assert written(directory) == sorted(texts(SHIPPED))
    assert texts(directory) == texts(SHIPPED)


def test_nginx_may_read_all_of_it_whatever_the_umask(tmp_path):
    directory = tmp_path / "new" / "nginx"
    umask = os.umask(0o077)
    try:
        written(directory)
    finally:
        os.umask(umask)
    modes = {
        (path.is_dir(), stat.S_IMODE(path.stat().st_mode))
        for path in (directory.parent, directory, *directory.rglob("*"))
    }
    assert modes == {(True, 0o755), (False, 0o644)}


def test_nginx_takes_what_was_written(installed):
    keep_within(installed.parent, installed)
    checked = subprocess.run(
        ["nginx", "-e", "stderr", "-t", "-c", installed / "nginx.conf"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "test is successful" in checked.stderr


def test_what_is_there_and_the_same_is_left_alone(installed):
    own = installed / "conf.d/own.conf"
    own.write_text("# mine\n")
    (installed / "conf.d/maps.conf").unlink()
    before = {path: path.stat().st_ino for path in installed.rglob("*.conf")}
    assert written(installed) == ["conf.d/maps.conf"]
    assert {path: path.stat().st_ino for path in before} == before
    assert own.read_text() == "# mine\n"


def test_one_file_that_differs_and_none_is_written(installed):
    changed = installed / "conf.d/upstreams.conf"
    changed.write_text("# mine\n")
    (installed / "nginx.conf").unlink()
    before = texts(installed)
    [reason] = reasons(installed)
    assert reason == f"{changed} differs; --force replaces it and keeps it as upstreams.conf.bak"
    assert texts(installed) == before


def test_same_size_and_time_do_not_make_the_same_file(installed):
    shipped, changed = SHIPPED / "nginx.conf", installed / "nginx.conf"
    changed.write_text(shipped.read_text().replace("4096", "9999"))
    time = shipped.stat().st_mtime_ns
    os.utime(changed, ns=(time, time))
    assert reasons(installed)


def test_force_keeps_the_old_one(installed):
    changed = installed / "conf.d/upstreams.conf"
    changed.write_text("# mine\n")
    [file] = write(installed, force=True)
    assert (file.path, file.kept) == (changed, Path(f"{changed}.bak"))
    assert file.kept.read_text() == "# mine\n"
    assert changed.read_bytes() == (SHIPPED / "conf.d/upstreams.conf").read_bytes()


def test_an_older_one_that_was_kept_is_never_overwritten(installed):
    changed, kept = installed / "conf.d/maps.conf", installed / "conf.d/maps.conf.bak"
    changed.write_text("# mine\n")
    kept.symlink_to("nowhere")
    (installed / "nginx.conf").write_text("# mine, too\n")
    before = texts_and_links(installed)
    assert reasons(installed, force=True) == (f"{kept} is there already; move it away",)
    assert texts_and_links(installed) == before


def texts_and_links(directory):
    return {
        path: path.readlink() if path.is_symlink() else path.read_bytes()
        for path in directory.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize("leads_to", ["nowhere", "other.conf"])
def test_a_link_is_replaced_and_not_what_it_leads_to(installed, leads_to):
    (installed / "other.conf").write_text("# mine\n")
    link = installed / "nginx.conf"
    link.unlink()
    link.symlink_to(leads_to)
    assert reasons(installed)[0].startswith(f"{link} differs;")
    [file] = write(installed, force=True)
    assert file.kept.readlink() == Path(leads_to)
    assert not link.is_symlink()
    assert (installed / "other.conf").read_text() == "# mine\n"


def test_a_directory_in_the_place_of_a_file_is_said(installed):
    (installed / "nginx.conf").unlink()
    (installed / "nginx.conf").mkdir()
    expected = f"{installed}/nginx.conf is a directory; choose another place"
    assert reasons(installed) == reasons(installed, force=True) == (expected,)


def test_a_full_disk_leaves_no_half_file(tmp_path):
    limit = 4096
    assert (SHIPPED / "conf.d/routes.conf").stat().st_size > limit

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    directory = tmp_path / "nginx"
    directory.mkdir()
    # The limit's signal is ignored in Python, so that to write fails as on a full disk.
    finished = run(directory, preexec_fn=little_room)
    assert finished.returncode == 1
    assert re.fullmatch(
        r"whoami-router: cannot write \S+\.conf: File too large\.\n", finished.stderr
    )
    left = texts(directory)
    assert left == {name: text for name, text in texts(SHIPPED).items() if name in left}


def test_command_says_what_it_wrote_and_what_is_next(tmp_path):
    directory = tmp_path / "nginx"
    finished = run(directory)
    assert (finished.returncode, finished.stderr) == (0, "")
    *files, following = finished.stdout.splitlines()
    assert files == [str(directory / name) for name in sorted(texts(SHIPPED))]
    assert str(directory / "conf.d/upstreams.conf") in following
    assert following.endswith(f"nginx -t -c {directory}/nginx.conf")


def test_next_step_holds_in_any_directory(tmp_path):
    # nginx takes a relative path for one below its own directory.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        [sys.executable, "-m", "whoami_router", "nginx-files", "here"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=environment,
    )
    assert f"nginx -t -c {tmp_path}/here/nginx.conf" in finished.stdout


def test_command_says_that_nothing_was_left_to_do(installed):
    finished = run(installed)
    assert (finished.returncode, finished.stdout) == (0, f"{installed} has them all.\n")


def test_command_names_each_file_that_differs_in_a_line(installed):
    names = ["conf.d/maps.conf", "nginx.conf"]
    for name in names:
        (installed / name).write_text("# mine\n")
    finished = run(installed)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert [line.split(" differs; ")[0] for line in finished.stderr.splitlines()] == [
        f"whoami-router: {installed}/{name}" for name in names
    ]
    forced = run("--force", installed)
    assert forced.returncode == 0
    assert forced.stdout.splitlines()[:2] == [
        f"{installed}/{name} (the old one is {Path(name).name}.bak)" for name in names
    ]


def is_a_file(directory):
    directory.write_text("")


def is_below_a_file(directory):
    directory.write_text("")
    return directory / "nginx"


def has_a_file_for_a_directory(directory):
    directory.mkdir()
    directory.joinpath("conf.d").write_text("")


def is_read_only(directory):
    directory.mkdir(mode=0o500)


def is_closed(directory):
    directory.mkdir(mode=0)


def leads_nowhere(directory):
    directory.symlink_to("nowhere")


@pytest.mark.parametrize("arguments", [[], ["--force"]])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (is_a_file, "Not a directory"),
        (is_below_a_file, "Not a directory"),
        (has_a_file_for_a_directory, "Not a directory"),
        (is_read_only, "Permission denied"),
        (is_closed, "Permission denied"),
        (leads_nowhere, "File exists"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(tmp_path, make, says, arguments):
    directory = tmp_path / "nginx"
    directory = make(directory) or directory
    finished = run(*arguments, directory, prefix=WITHOUT_RIGHTS if os.getuid() == 0 else ())
    assert finished.returncode == 1
    assert re.fullmatch(
        rf"whoami-router: cannot write {directory}/\S+\.conf: {says}\.\n", finished.stderr
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount")
def test_read_only_file_system_is_said_in_a_line(tmp_path):
    directory = tmp_path / "nginx"
    directory.mkdir()
    mount = 'mount -t tmpfs -o ro tmpfs "$0"; exec "$@"'  # which nobody else sees
    finished = run(directory, prefix=["unshare", "--mount", "sh", "-ec", mount, directory])
    assert finished.returncode == 1
    assert finished.stderr == (
        f"whoami-router: cannot write {directory}/conf.d/clients.conf: Read-only file system.\n"
    )


def test_command_is_no_more_than_words_around_the_module():
    """It loads nothing that asks or serves: an init container runs it on each start."""
    loaded = subprocess.run(
        [sys.executable, "-c", f"import {cli.__name__}, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout.split()
    assert not {"aiohttp", "httpx", "starlette", "uvicorn"} & set(loaded)
