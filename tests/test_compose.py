"""What can be seen of docker-compose.yml and its files without images to run."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.stack.nginx import SHIPPED, check
from tests.stack.synapse import STREAMS

ROOT = Path(__file__).parents[1]
CONFIGURATION = ROOT / "deploy/compose/synapse"
UPSTREAMS = ROOT / "deploy/compose/upstreams.conf"


@pytest.fixture(scope="module")
def services():
    checked = subprocess.run(
        ["docker-compose", "--file", ROOT / "docker-compose.yml", "config"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    return yaml.safe_load(checked.stdout)["services"]


def table(path):
    """Return which pool a file of upstreams says serves which group of endpoints."""
    [body] = re.findall(r"^map \$endpoint_group \$pool {([^}]*)^}", path.read_text(), re.MULTILINE)
    return dict(re.findall(r"^ +(\w+) +(\w+);", body, re.MULTILINE))


def upstreams(path):
    return re.findall(r"^upstream (\w+) {([^}]*)^}", path.read_text(), re.MULTILINE)


def blocks(path):
    """Return the upstreams of a file: name to what it says but for addresses, and how many."""
    return {
        name: {
            re.sub("^server [^ ;]+", "server", " ".join(line.partition("#")[0].split()))
            for line in body.splitlines()
            if line.partition("#")[0].strip()
        }
        for name, body in upstreams(path)
    }


def pools():
    """Return the pools that requests go to: name to the services whose sockets are in it."""
    used = {"whoami_router", *table(UPSTREAMS).values()}
    return {
        name: re.findall(r"server unix:/sockets/([\w-]+)\.sock\b", body)
        for name, body in upstreams(UPSTREAMS)
        if name in used
    }


def processes():
    """Return the services that are a process of Synapse, and the pool of each."""
    return {name: pool for pool, names in pools().items() for name in names if name != "router"}


def shared():
    return yaml.safe_load((CONFIGURATION / "shared.yaml").read_text())


@pytest.fixture
def told(tmp_path):
    """Return a function that says what start.sh tells the process of a name, and no other."""

    def run(name):
        script = (CONFIGURATION / "start.sh").read_text()
        for old, new in (
            ('"/sockets/', f'"{tmp_path}/'),
            ("/tmp/worker.yaml", f"{tmp_path}/worker.yaml"),
            ("/config/", f"{CONFIGURATION}/"),
            ("exec /start.py", "exec echo"),
        ):
            assert old in script
            script = script.replace(old, new)
        ran = subprocess.run(
            ["sh", "-c", script, "start.sh", name], capture_output=True, text=True, check=True
        )
        files = ran.stdout.split("-c ")[1:]
        assert files[:2] == ["/data/homeserver.yaml ", f"{CONFIGURATION}/shared.yaml "]
        [own] = files[2:]
        return yaml.safe_load(Path(own.strip()).read_text())

    return run


def listeners(configuration):
    return configuration.get("listeners") or configuration["worker_listeners"]


def client_listener(configuration):
    [listener] = [each for each in listeners(configuration) if "path" in each]
    return listener


def resources(listener):
    return {name for each in listener["resources"] for name in each["names"]}


def test_nginx_takes_the_shipped_files_with_those_of_compose_mounted_over_them(tmp_path):
    mounted = [UPSTREAMS, ROOT / "deploy/compose/access_log.conf"]
    assert "test is successful" in check(tmp_path, *mounted)


def test_upstreams_of_compose_are_the_shipped_ones_but_for_their_addresses():
    shipped = SHIPPED / "conf.d/upstreams.conf"
    assert table(UPSTREAMS) == table(shipped)
    assert blocks(UPSTREAMS) == blocks(shipped)


def test_every_pool_has_workers_of_its_own_and_every_worker_a_pool(services):
    assert all(pools().values())
    names = [name for names in pools().values() for name in names]
    assert len(set(names)) == len(names)
    started = {
        name for name, each in services.items() if "/start.sh" in str(each.get("entrypoint"))
    }
    assert {*names} == {"router", *started}


def test_every_process_of_a_pool_listens_there(services, told):
    assert services["router"]["environment"]["WHOAMI_ROUTER_LISTEN"] == "unix:/sockets/router.sock"
    for name, pool in processes().items():
        assert services[name]["command"] in (name, [name])
        configuration = told(name)
        listener = client_listener(configuration)
        assert listener["path"] == f"/sockets/{name}.sock"
        assert listener["x_forwarded"] is True
        assert listener["request_id_header"] == "X-Request-ID"
        assert resources(listener) >= {"client", "federation"}
        if pool != "synapse_main":
            assert configuration["worker_name"] == name
            environment = services[name]["environment"]
            assert environment["SYNAPSE_WORKER"] == configuration["worker_app"]


def test_what_a_killed_process_left_does_not_keep_it_from_starting(told, tmp_path):
    for name in ("a.sock", "a.sock.lock", "b.sock"):
        (tmp_path / name).touch()
    told("a")
    assert [each.name for each in tmp_path.glob("*.sock*")] == ["b.sock"]


def test_writer_of_each_stream_is_the_worker_that_nginx_sends_it_to():
    writers = shared()["stream_writers"]
    assert set(writers) == set(STREAMS)
    for stream, writer in writers.items():
        assert pools()[table(UPSTREAMS)[stream]] == [writer]


def test_other_processes_reach_the_writers(told):
    places = shared()["instance_map"]
    assert set(places) == {"main", *shared()["stream_writers"].values()}
    for name, place in places.items():
        host = place["host"]
        assert host == (name if name != "main" else "synapse")
        [listener] = [each for each in listeners(told(host)) if each.get("port") == place["port"]]
        assert resources(listener) == {"replication"}


def test_health_check_asks_a_listener_that_every_process_has(services, told):
    for name in processes():
        [port] = re.findall(r"localhost:(\d+)/health", str(services[name]["healthcheck"]["test"]))
        assert int(port) in [each.get("port") for each in listeners(told(name))]


def test_only_workers_that_nginx_sends_media_to_serve_media(told):
    assert shared()["enable_media_repo"] is False
    assert shared()["media_instance_running_background_jobs"] in pools()["synapse_media"]
    for name, pool in processes().items():
        configuration = told(name)
        serves = pool in ("synapse_media", "synapse_quarantined_media_changes")
        assert configuration.get("enable_media_repo", False) is serves
        assert ("media" in resources(client_listener(configuration))) is serves


def test_user_directory_is_kept_by_the_worker_that_is_asked():
    assert pools()["synapse_user_directory"] == [shared()["update_user_directory_from_worker"]]


def test_processes_of_synapse_have_the_same_files(services):
    for name in processes():
        for key in ("image", "entrypoint", "volumes"):
            assert services[name][key] == services["synapse"][key]


def test_database_has_a_connection_for_everyone():
    wanted = len(processes()) * shared()["database"]["args"]["cp_max"]
    # max_connections and superuser_reserved_connections of a PostgreSQL that is told nothing.
    assert wanted <= 100 - 3


def test_router_and_nginx_can_do_no_harm(services):
    for name in ("router", "nginx"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["security_opt"] == ["no-new-privileges:true"]
    assert services["router"]["network_mode"] == "none"
    assert re.search(r"^USER (?!root|0\b)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


def test_only_nginx_is_published_and_only_to_this_machine(services):
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert list(published) == ["nginx"]
    [port] = published["nginx"]
    assert port in ("127.0.0.1:8008:8080/tcp", "127.0.0.1:8008:8080") or (
        port["host_ip"],
        str(port["published"]),
        port["target"],
    ) == ("127.0.0.1", "8008", 8080)


def settings_in(tree):
    """Yield every key that has a text, and the text."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, dict | list):
            yield from settings_in(value)
        else:
            yield str(key), str(value or "")


def test_no_secret_is_committed(services):
    found = list(settings_in(services))
    for path in CONFIGURATION.glob("*.yaml"):
        found += settings_in(yaml.safe_load(path.read_text()))
    secret = [(key, value) for key, value in found if re.search("secret|pass|key", key.lower())]
    assert sorted(key for key, _ in secret) == ["POSTGRES_PASSWORD_FILE", "passfile"]
    assert all(value.startswith("/secrets/") for _, value in secret)


def test_synapse_is_the_version_that_the_tests_run():
    [image] = re.findall(
        r"matrixdotorg/synapse:v([\d.]+)", (ROOT / "docker-compose.yml").read_text()
    )
    requirements = (ROOT / "tests/stack/synapse-requirements.txt").read_text()
    assert f"]=={image}\n" in requirements
