"""The image without Docker: what its Dockerfile says, and what its commands make."""

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.stack.process import free_port
from tests.stack.router import Router
from whoami_router import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = ROOT / "constraints.txt"
# Older than the newest, so that it shows whether the constraints are obeyed.
OLDER = {"hatchling": "1.27.0", "idna": "3.10"}


def instructions():
    """Return the instructions of the Dockerfile in their order, each as its word and the rest."""
    lines = [
        line
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    text = "\n".join(lines).replace("\\\n", "")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines()]


def shipped():
    """Return the instructions of the last stage, which is the image."""
    words = [word for word, _ in instructions()]
    return instructions()[len(words) - words[::-1].index("FROM") - 1 :]


def only(word, among):
    [rest] = [rest for each, rest in among if each == word]
    return rest


def copied():
    """Return what is copied from the checkout."""
    return {
        name
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for name in rest.split()[:-1]
    }


def admitted():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line.removeprefix("!") for line in lines if line.startswith("!")]


def constraints(text):
    """Return the versions that constraints name, by the canonical name of the package."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (x.split("==") for x in lines)}


@pytest.fixture(scope="module")
def pinned():
    return constraints(CONSTRAINTS.read_text())


def needed(requirements, python):
    """Return the names that these requirements come to, as what is installed here tells."""
    environment = {**default_environment(), "python_version": python, "extra": ""}
    names, wanted = set(), [Requirement(each) for each in requirements]
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        if name in names or (requirement.marker and not requirement.marker.evaluate(environment)):
            continue
        names.add(name)
        wanted += map(Requirement, importlib.metadata.requires(name) or [])
    return names


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """Return the directory of /venv as the Dockerfile's commands make it, but for its place."""
    directory = tmp_path_factory.mktemp("image")
    source, place = directory / "src", directory / "venv"
    source.mkdir()
    for name in copied():
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source)
    text = CONSTRAINTS.read_text()
    for name, version in OLDER.items():
        text = re.sub(rf"^{name}==.*", f"{name}=={version}", text, flags=re.MULTILINE)
    (source / CONSTRAINTS.name).write_text(text)
    # The Python of the image it is built from, with a pip of its own.
    subprocess.run([sys.executable, "-m", "venv", directory / "usr"], check=True)
    arguments = {}
    for word, rest in instructions():
        if word == "ARG":
            name, _, arguments[name] = rest.partition("=")
        if word != "RUN":
            continue
        for path in ("/venv", "/wheels", "/image"):
            rest = re.sub(rf"(?<=[ =]){path}\b", str(directory / path.strip("/")), rest)  # noqa: PLW2901
        ran = subprocess.run(
            ["sh", "-euc", rest],
            cwd=source,
            env={
                **{name: text for name, text in os.environ.items() if name.startswith("PIP_")},
                "PATH": f"{directory}/usr/bin:/usr/bin:/bin",
                **arguments,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
    made = directory / "image/venv"
    # Scripts name the Python of the place they were made for.
    made.rename(place)
    return place


def test_context_admits_what_the_image_is_built_from_and_nothing_else():
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"
    names = admitted()
    assert all((ROOT / name).exists() for name in names)
    assert {name.split("/")[0] for name in names} == copied()
    # Of deploy/ only what the wheel carries.
    carried = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert {name for name in names if "/" in name or name in carried} == set(carried)


def test_image_holds_the_versions_of_the_constraints(image, pinned):
    shown = subprocess.run(
        [image / "bin/python", "-c", _INSTALLED], capture_output=True, text=True, check=True
    )
    installed = {canonicalize_name(name): version for name, version in json.loads(shown.stdout)}
    assert installed.pop("whoami-router") == __version__
    assert installed.items() <= (pinned | OLDER).items()
    assert installed["idna"] == OLDER["idna"]
    assert not {"pip", "hatchling"} & set(installed)


def test_image_is_built_by_the_tool_of_the_constraints(image):
    [wheel] = image.glob("lib/*/site-packages/whoami_router-*.dist-info/WHEEL")
    assert f"Generator: hatchling {OLDER['hatchling']}\n" in wheel.read_text()


_INSTALLED = """
import importlib.metadata, json
print(json.dumps([(each.name, each.version) for each in importlib.metadata.distributions()]))
"""


def test_image_runs_the_command(image):
    said = subprocess.run(
        [image / "bin/whoami-router", "--version"], capture_output=True, text=True, check=True
    )
    assert __version__ in said.stdout


def test_image_built_at_another_time_is_the_same(image):
    [stated] = [
        int(rest.partition("=")[2]) for _, rest in instructions() if rest.startswith("SOURCE_DATE")
    ]
    for path in image.rglob("*"):
        assert path.lstat().st_mtime == stated, path
    compiled = list(image.rglob("*.pyc"))
    assert compiled
    # Nor is the directory one that COPY makes, at the time of the build.
    assert only("COPY", shipped()) == "--from=build /image /"
    # The flags after the magic number (PEP 552): a hash of the source, not its time.
    assert {path.read_bytes()[4] for path in compiled} <= {0b01, 0b11}


def test_constraints_name_one_version_of_each_package_in_order(pinned):
    text = CONSTRAINTS.read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert lines == sorted(lines, key=lambda line: line.partition("==")[0].lower())
    assert len(pinned) == len(lines)


def test_constraints_are_within_the_bounds_of_the_project(pinned):
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_constraints_cover_what_dependencies_depend_on(pinned, python):
    assert needed(PROJECT["project"]["dependencies"], python) <= set(pinned)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_constraints_can_be_had_for_the_python_of_the_image(pinned, machine, tmp_path):
    [python] = re.findall(r"^ARG BASE=python:([\d.]+)-slim$", _dockerfile(), re.MULTILINE)
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"),
            *("--target", tmp_path, "--report", "-", "--only-binary", ":all:"),
            *("--python-version", python, "--platform", f"manylinux_2_28_{machine}"),
            *("--platform", f"manylinux2014_{machine}", "--constraint", CONSTRAINTS),
            *PROJECT["project"]["dependencies"],
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    chosen = [each["metadata"] for each in json.loads(ran.stdout)["install"]]
    assert {canonicalize_name(each["name"]) for each in chosen} <= set(pinned)


def _dockerfile():
    return (ROOT / "Dockerfile").read_text()


def test_labels_say_what_the_project_says():
    stated = dict(each.split("=", 1) for each in shlex.split(only("LABEL", shipped())))
    assert {name.rpartition(".")[2]: text for name, text in stated.items()} == {
        "title": PROJECT["project"]["name"],
        "description": PROJECT["project"]["description"],
        "licenses": PROJECT["project"]["license"],
        "version": "$VERSION",
        "revision": "$REVISION",
        "source": "$SOURCE",
    }
    assert all(name.startswith("org.opencontainers.image.") for name in stated)
    assert ("ARG", f"VERSION={__version__}") in shipped()


def test_both_stages_stand_on_the_same_python():
    assert [rest for word, rest in instructions() if word == "FROM"] == ["$BASE AS build", "$BASE"]


def test_image_runs_as_nobody_in_particular_and_can_be_told_that_it_does():
    uid, gid = only("USER", shipped()).split(":")
    assert int(uid) > 0
    assert int(gid) > 0


def test_health_check_of_the_image_says_whether_the_router_lives_whatever_synapse_does(tmp_path):
    _, _, command = only("HEALTHCHECK", shipped()).partition("CMD ")
    program, *arguments = json.loads(command)
    assert [program] == json.loads(only("ENTRYPOINT", shipped()))
    stated = dict(each.split("=") for each in shlex.split(only("ENV", shipped())))
    port = free_port()
    environment = {
        **os.environ,
        "WHOAMI_ROUTER_LISTEN": stated["WHOAMI_ROUTER_LISTEN"].replace(":9009", f":{port}"),
    }

    def health():
        asked = [sys.executable, "-m", "whoami_router", *arguments]
        return subprocess.run(asked, env=environment, capture_output=True, check=False).returncode

    with Router(tmp_path, "http://127.0.0.1:1", listen=environment["WHOAMI_ROUTER_LISTEN"]):
        assert health() == 0
    assert health() == 1
