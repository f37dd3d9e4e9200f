import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.endpoints.__main__ import HERE, installed, main
from tests.endpoints.differences import Differences

REQUIREMENTS = Path(__file__).parents[1] / "stack/synapse-requirements.txt"

VERSION = "The list is for another version"
LACKING = "Synapse has them, the list lacks them"
GONE = "The list has them, Synapse no longer"
METHODS = "The list sends them to any worker, which does not answer them"


@pytest.fixture
def registered():
    return installed()


@pytest.fixture
def data():
    return json.loads((HERE / "synapse.json").read_text())


@pytest.fixture
def listed(data, registered):
    """Return what is listed, with the data as it is by then."""
    return lambda: Differences(data, registered).by_heading()


def entry(data, pattern, stream=None):
    """Return the one entry of the stream with a pattern that ends so."""
    [found] = [
        entry
        for entry in data["endpoints"]
        if entry["pattern"].endswith(pattern) and entry["stream"] == stream
    ]
    return found


def test_list_is_what_the_installed_synapse_registers(listed):
    assert listed() == {}


def test_list_is_for_the_version_that_the_tests_install(data):
    assert REQUIREMENTS.read_text().rstrip().endswith(f"=={data['synapse_version']}")


def test_list_for_another_version_is_told(data, registered, listed):
    data["synapse_version"] = "1.0"
    assert listed() == {VERSION: [f"1.0, and installed is {registered['version']}"]}


def test_endpoint_that_the_list_lacks_is_told(data, listed):
    data["endpoints"].remove(entry(data, "/capabilities$"))
    [line] = listed()[LACKING]
    assert line == (
        "^/_matrix/client/(r0|v3|unstable)/capabilities$  GET"
        ", as for /_matrix/client/r0/capabilities  (generic_worker)"
    )


def test_version_of_an_endpoint_that_the_list_lacks_is_told(data, listed):
    entry(data, "/capabilities$")["pattern"] = "^/_matrix/client/(r0|unstable)/capabilities$"
    [line] = listed()[LACKING]
    assert "as for /_matrix/client/v3/capabilities" in line


def test_method_that_the_list_lacks_is_told(data, listed):
    entry(data, "/account/whoami$")["methods"] = ["POST"]
    [line] = listed()[LACKING]
    assert "/account/whoami$  GET, as for" in line


def test_endpoint_of_the_media_repository_that_the_list_lacks_is_told(data, listed):
    data["endpoints"].remove(entry(data, "^/_matrix/media/"))
    assert len(listed()[LACKING]) == 7
    assert all(line.endswith("(media_repository)") for line in listed()[LACKING])


@pytest.mark.parametrize(
    ("stream", "pattern"),
    [
        ("typing", "/typing"),
        ("to_device", "/sendToDevice/"),
        ("receipts", "/receipt"),
        ("receipts", "/read_markers"),
        ("push_rules", "/pushrules/"),
        ("thread_subscriptions", "/io.element.msc4306/.*"),
        ("quarantined_media_changes", "/quarantine_media/.*$"),
    ],
)
def test_endpoint_that_only_a_writer_answers_is_told_if_it_is_not_sent_there(
    data, listed, stream, pattern
):
    data["endpoints"].remove(entry(data, pattern, stream))
    assert any(line.endswith(f"({stream} writer)") for line in listed()[LACKING])


def test_endpoint_that_only_a_writer_answers_is_told_if_any_worker_gets_it(data, listed):
    del entry(data, "/pushrules/")["methods"]
    [line] = listed()[METHODS]
    assert line == (
        "^/_matrix/client/(api/v1|r0|v3|unstable)/pushrules/  DELETE PUT"
        ", as for /_matrix/client/api/v1/pushrules/x"
    )


def test_endpoint_that_only_main_answers_is_told_if_a_worker_gets_it(data, listed):
    entry(data, "/login$")["pattern"] = "^/_matrix/client/(api/v1|r0|v1|v3|unstable)/login"
    [line] = listed()[METHODS]
    assert line.endswith("POST, as for /_matrix/client/v1/login/get_token")


@pytest.mark.parametrize("where", ["endpoints", "not_routed"])
def test_endpoint_that_synapse_has_not_is_told(data, listed, where):
    invented = "^/_matrix/client/v3/invented$"
    data[where].append({"app": "generic_worker", "stream": None, "pattern": invented})
    assert listed() == {GONE: [f"{invented}  (generic_worker)"]}


def test_endpoint_that_is_not_routed_says_why(data):
    assert all(entry["reason"] for entry in data["not_routed"])


def test_command_prints_what_differs_and_fails(data, tmp_path):
    entry(data, "/capabilities$")["pattern"] = "^/_matrix/client/v3/invented$"
    changed = tmp_path / "synapse.json"
    changed.write_text(json.dumps(data))

    result = CliRunner().invoke(main, ["--list", str(changed)])

    assert result.exit_code == 1
    assert f"{LACKING}:\n\n  ^/_matrix/client/(r0|v3|unstable)/capabilities$  GET" in result.output
    assert f"{GONE}:\n\n  ^/_matrix/client/v3/invented$  (generic_worker)\n" in result.output


def test_command_says_that_nothing_differs(data):
    result = CliRunner().invoke(main)
    assert result.output == f"Nothing differs from Synapse {data['synapse_version']}.\n"
    assert result.exit_code == 0
