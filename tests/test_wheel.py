"""What the built wheel installs, in an environment that has nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.fake_synapse import FakeSynapse, served
from tests.stack.nginx import keep_within
from tests.stack.process import Process, accepts, free_port

ROOT = Path(__file__).parents[1]
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "whoami_router", "nginx", "deploy", "docs")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def run(*command):
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert finished.returncode == 0, finished.stderr[-2000:]
    return finished.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return a copy of what the wheel is built from: a build leaves nothing in the checkout."""
    directory = tmp_path_factory.mktemp("source")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, directory / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, directory)
    return directory


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    directory = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", "--no-deps", "--wheel-dir", directory, source)
    [built] = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """Return the directory of a virtual environment in which only the wheel was installed."""
    directory = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", directory)
    run(*PIP, "--python", directory, "install", wheel)
    return directory


def files(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_wheel_holds_the_package_and_what_administrators_need_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    package, version, _ = wheel.name.split("-", 2)
    assert {name.split("/")[0] for name in names} == {
        package,
        f"{package}-{version}.dist-info",
        f"{package}-{version}.data",
    }
    data = [name.split(".data/")[1] for name in names if ".data/" in name]
    assert all(name.startswith("data/share/whoami-router/") for name in data)
    assert f"{package}/status.html" in names
    assert not [name for name in names if "test" in name or "__pycache__" in name]


def test_every_module_finds_what_it_imports(environment):
    program = (
        "import importlib, pkgutil, whoami_router as package\n"
        "for module in pkgutil.walk_packages(package.__path__, 'whoami_router.'):\n"
        "    if not module.name.endswith('__main__'):\n"
        "        importlib.import_module(module.name)\n"
        "        print(module.name)\n"
    )
    loaded = run(environment / "bin/python", "-W", "error", "-c", program).split()
    assert {"whoami_router.app", "whoami_router.cli.serve", "whoami_router.cli.check"} <= {*loaded}


def test_installed_command_resolves(source, environment, tmp_path):
    synapse = FakeSynapse(owners={"a": "@alice:h"})
    listen, admin = (f"127.0.0.1:{free_port()}" for _ in range(2))
    with (
        served(synapse) as address,
        Process(
            "whoami-router",
            [
                *(environment / "bin/whoami-router", "serve", "--listen", listen),
                *("--admin-listen", admin, "--synapse-url", f"http://{address}"),
            ],
            tmp_path / "log",
            ready=lambda: accepts(listen) and accepts(admin),
        ),
        httpx.Client() as client,
    ):
        answer = client.get(f"http://{listen}/resolve", headers={"authorization": "Bearer a"})
        page = client.get(f"http://{admin}/")
    assert (answer.status_code, answer.headers["x-user-identifier"]) == (204, "alice")
    assert (page.status_code, page.text) == (
        200,
        (source / "whoami_router/status.html").read_text(),
    )


def test_nginx_takes_the_files_that_the_wheel_carries(source, environment, tmp_path):
    directory = tmp_path / "nginx"
    run(environment / "bin/whoami-router", "nginx-files", directory)
    assert files(directory) == files(source / "nginx")
    keep_within(tmp_path, directory)
    checked = subprocess.run(
        ["nginx", "-e", "stderr", "-t", "-c", directory / "nginx.conf"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "test is successful" in checked.stderr


def test_units_and_what_monitors_come_with_it(source, environment):
    shared = environment / "share/whoami-router"
    for name in ("systemd", "prometheus", "grafana", "mtail"):
        assert files(shared / name) == files(source / "deploy" / name) != {}


def test_documents_come_with_it(source, environment):
    """The runbooks of the alerts are there, with the pictures that they show."""
    documents = files(source / "docs")
    expected = {name: text for name, text in documents.items() if name.endswith((".md", ".svg"))}
    assert files(environment / "share/whoami-router/docs") == expected
    assert "operate.md" in expected
