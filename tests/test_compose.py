"""What can be seen of docker-compose.yml and its files without images to run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from tests.stack.nginx import SHIPPED, check
from tests.stack.process import Process, accepts, free_port, wait_until
from tests.stack.router import Router
from tests.stack.synapse import STREAMS
from whoami_router.cli.serve import command as serve

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
CONFIGURATION = DEPLOY / "compose/synapse"
UPSTREAMS = DEPLOY / "compose/upstreams.conf"
MTAIL = DEPLOY / "compose/mtail"
PROFILES = ("full", "monitoring", "router")
MONITORING = {"mtail", "prometheus", "grafana"}
CONFINED = ("router", "router-alone", "nginx", "redis", *MONITORING)


@pytest.fixture(scope="module")
def composed():
    """Return docker-compose.yml as Compose reads it, with all profiles."""
    profiles = [word for name in PROFILES for word in ("--profile", name)]
    checked = subprocess.run(
        ["docker-compose", "--file", ROOT / "docker-compose.yml", *profiles, "config"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    return yaml.safe_load(checked.stdout)


@pytest.fixture(scope="module")
def services(composed):
    return composed["services"]


def started(services, profile):
    """Return the services that start with this profile: Compose's rule."""
    return {name for name, each in services.items() if profile in each.get("profiles", [profile])}


def mounts(service):
    """Return what is mounted into a service: place to source and whether it can only be read.

    Compose 1.29 writes `source:place:ro`, Compose 2 a mapping.
    """
    found = {}
    for each in service.get("volumes", []):
        if isinstance(each, str):
            source, place, *mode = each.split(":")
            found[place] = source, mode == ["ro"]
        else:
            found[each["target"]] = each["source"], each.get("read_only", False)
    return found


def published(service):
    """Return the published ports of a service: (address, port, port in the container) each."""
    return [
        tuple(each.removesuffix("/tcp").rsplit(":", 2))
        if isinstance(each, str)
        else (each["host_ip"], str(each["published"]), str(each["target"]))
        for each in service.get("ports", [])
    ]


def networks(service):
    return set(service.get("networks", ["default"]))


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
    log = tmp_path / "access_log.conf"
    text = (DEPLOY / "compose/access_log.conf").read_text()
    assert " /logs/" in text
    log.write_text(text.replace(" /logs/", f" {tmp_path}/"))
    assert "test is successful" in check(tmp_path, UPSTREAMS, log)


def test_upstreams_of_compose_are_the_shipped_ones_but_for_their_addresses():
    shipped = SHIPPED / "conf.d/upstreams.conf"
    assert table(UPSTREAMS) == table(shipped)
    assert blocks(UPSTREAMS) == blocks(shipped)


def test_every_pool_has_workers_of_its_own_and_every_worker_a_pool(services):
    assert all(pools().values())
    names = [name for names in pools().values() for name in names]
    assert len(set(names)) == len(names)
    processes = {
        name for name, each in services.items() if "/start.sh" in str(each.get("entrypoint"))
    }
    assert {*names} == {"router", *processes}


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


def test_plain_up_is_the_full_stack():
    assert "\nCOMPOSE_PROFILES=full\n" in (ROOT / ".env").read_text()


def test_profiles_start_what_they_are_named_after(services):
    full = {"synapse-config", "postgres", "redis", "nginx", "router", *processes()}
    assert started(services, "full") == full
    assert started(services, "monitoring") == full | MONITORING
    assert started(services, "router") == {"router-alone"}
    assert {name for profile in PROFILES for name in started(services, profile)} == set(services)


def test_every_service_starts_with_what_it_depends_on(services):
    for profile in PROFILES:
        names = started(services, profile)
        for name in names:
            assert set(services[name].get("depends_on", {})) <= names


def test_every_mounted_file_exists_and_cannot_be_written(services, composed):
    for name, service in services.items():
        for source, read_only in mounts(service).values():
            if source in composed["volumes"]:
                continue
            assert Path(source).is_relative_to(ROOT), name
            assert Path(source).exists(), source
            assert read_only, source


def test_every_volume_and_network_is_used(services, composed):
    used = {source for each in services.values() for source, _ in mounts(each).values()}
    assert set(composed["volumes"]) <= used
    assert set(composed["networks"]) - {"default"} <= set().union(*map(networks, services.values()))


def test_every_image_is_one_version_by_its_official_name(services):
    for name, service in services.items():
        if "build" not in service:
            # A first word with a dot in it would be the name of a registry.
            assert re.fullmatch(r"([a-z]+/)?[a-z]+:v?\d+[\d.]*(-alpine)?", service["image"]), name
    [base] = re.findall("^FROM (.*)", (MTAIL / "Dockerfile").read_text(), re.MULTILINE)
    assert base == "debian:bookworm-slim"


@pytest.mark.parametrize("name", CONFINED)
def test_a_service_can_do_no_harm(services, name):
    service = services[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    if "build" in service:
        context = service["build"] if isinstance(service["build"], str) else None
        directory = Path(context or service["build"]["context"])
        text = (directory / "Dockerfile").read_text()
        assert re.search(r"^USER (?!root|0\b)", text, re.MULTILINE)
    else:
        assert not re.match(r"root|0\b", service["user"])


def test_router_is_reached_by_what_scrapes_it_and_reaches_nobody(services, composed):
    assert networks(services["router"]) == {"metrics"}
    assert composed["networks"]["metrics"]["internal"] is True
    members = {name for name, each in services.items() if "metrics" in networks(each)}
    assert members == {"router", "mtail", "prometheus"}


def test_ports_are_published_to_this_machine_only(services):
    assert {
        name: published(service) for name, service in services.items() if published(service)
    } == {
        "nginx": [("127.0.0.1", "8008", "8080")],
        "prometheus": [("127.0.0.1", "9090", "9090")],
        "grafana": [("127.0.0.1", "3000", "3000")],
    }


def test_published_services_are_in_a_network_that_can_be_reached(services, composed):
    for service in services.values():
        if published(service):
            described = [composed["networks"].get(name) or {} for name in networks(service)]
            assert not all(each.get("internal") for each in described)


def test_router_alone_takes_every_option_of_serve_from_the_environment(services):
    environment = services["router-alone"]["environment"]
    assert set(environment) == {option.envvar for option in serve.params}
    assert services["router-alone"]["network_mode"] == "host"
    assert {name: text for name, text in environment.items() if text} == {
        "WHOAMI_ROUTER_SYNAPSE_URL": "http://127.0.0.1:8008",
        "WHOAMI_ROUTER_LISTEN": "127.0.0.1:9009",
        "WHOAMI_ROUTER_ADMIN_LISTEN": "127.0.0.1:9011",
    }


@pytest.mark.parametrize("name", ["router", "router-alone"])
def test_health_check_says_whether_the_router_lives_whatever_synapse_does(services, name, tmp_path):
    _, program, *arguments = services[name]["healthcheck"]["test"]
    assert program == "whoami-router"
    stated = services[name]["environment"]
    admin = re.sub(r":\d+$", f":{free_port()}", stated["WHOAMI_ROUTER_ADMIN_LISTEN"])
    listen = stated["WHOAMI_ROUTER_LISTEN"].replace("/sockets/", f"{tmp_path}/")
    listen = re.sub(r":\d+$", f":{free_port()}", listen)
    environment = {"WHOAMI_ROUTER_LISTEN": listen, "WHOAMI_ROUTER_ADMIN_LISTEN": admin}

    def health():
        asked = [sys.executable, "-m", "whoami_router", *arguments]
        return subprocess.run(
            asked, env={**os.environ, **environment}, capture_output=True, check=False
        ).returncode

    options = ("--admin-listen", admin)
    with Router(tmp_path, "http://127.0.0.1:1", *options, listen=listen):
        assert health() == 0
    assert health() == 1


def scraped(path):
    """Return a configuration of Prometheus without its addresses, and these by job."""
    configuration = yaml.safe_load(path.read_text())
    targets = {
        job["job_name"]: [
            target for group in job.pop("static_configs") for target in group["targets"]
        ]
        for job in configuration["scrape_configs"]
    }
    configuration["rule_files"] = [Path(each).name for each in configuration["rule_files"]]
    return configuration, targets


def test_prometheus_of_compose_is_the_example_but_for_its_addresses(services):
    configuration, targets = scraped(DEPLOY / "compose/prometheus.yml")
    example, others = scraped(DEPLOY / "prometheus/prometheus.yml")
    assert configuration == example
    assert set(targets) == set(others)
    [port] = re.findall(r"--port (\d+)", (MTAIL / "start.sh").read_text())
    listen = services["router"]["environment"]["WHOAMI_ROUTER_ADMIN_LISTEN"]
    assert targets == {
        "whoami-router": [listen.replace("0.0.0.0", "router")],
        "whoami-router-mtail": [f"mtail:{port}"],
    }


def test_prometheus_takes_its_configuration_with_the_rules_mounted_beside_it(services, tmp_path):
    command = services["prometheus"]["command"]
    [file] = [word.split("=")[1] for word in command if word.startswith("--config.file=")]
    mounted = mounts(services["prometheus"])
    text = Path(mounted[file][0]).read_text()
    for place, (source, _) in mounted.items():
        text = text.replace(f" {place}\n", f" {source}\n")
    copy = tmp_path / "prometheus.yml"
    copy.write_text(text)
    checked = subprocess.run(
        ["promtool", "check", "config", copy], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert str(DEPLOY / "prometheus/whoami-router.rules.yml") in text


def test_volume_of_prometheus_is_where_it_writes(services):
    command = services["prometheus"]["command"]
    [place] = [word.split("=")[1] for word in command if word.startswith("--storage.tsdb.path=")]
    assert mounts(services["prometheus"])[place] == ("prometheus-data", False)


def test_grafana_finds_its_dashboard_and_its_prometheus(services):
    mounted = mounts(services["grafana"])
    provisioning = Path(mounted["/etc/grafana/provisioning"][0])
    [provider] = [
        provider
        for file in provisioning.glob("dashboards/*.yml")
        for provider in yaml.safe_load(file.read_text())["providers"]
    ]
    directory = provider["options"]["path"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert str(Path(home).parent) == directory
    assert home in mounted
    [source] = [
        source
        for file in provisioning.glob("datasources/*.yml")
        for source in yaml.safe_load(file.read_text())["datasources"]
    ]
    assert source["url"] == "http://prometheus:9090"
    assert networks(services["grafana"]) & networks(services["prometheus"])


def test_nobody_can_log_in_to_grafana_or_change_it(services):
    environment = services["grafana"]["environment"]
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_mtail_may_empty_the_log_that_nginx_writes_before_its_volume_is_full(services, composed):
    logged = (DEPLOY / "compose/access_log.conf").read_text()
    script = (MTAIL / "start.sh").read_text()
    [log] = re.findall(r"^access_log (/logs/\S+) routing_json;", logged, re.MULTILINE)
    assert f"\nlog={log}\n" in script
    for name in ("nginx", "mtail"):
        assert mounts(services[name])["/logs"] == ("logs", False)
    options = dict(
        each.split("=") for each in composed["volumes"]["logs"]["driver_opts"]["o"].split(",")
    )
    uid, gid = services["mtail"]["user"].split(":")
    assert (options["uid"], options["gid"], options["mode"]) == (uid, gid, "0700")
    [threshold] = re.findall(r"-gt (\d+) ", script)
    assert int(threshold) < int(options["size"].removesuffix("m")) * 1e6


def test_mtail_counts_on_after_it_has_emptied_the_log(services, tmp_path):
    port = free_port()
    log = tmp_path / "routing.json"
    script = (MTAIL / "start.sh").read_text()
    for old, new in (
        ("=/logs/routing.json", f"={log}"),
        ("-gt 16000000", "-gt 4000"),
        ("sleep 5", "sleep 0.1"),
        ("--port 3903", f"--address 127.0.0.1 --port {port}"),
        ("/etc/mtail", mounts(services["mtail"])["/etc/mtail"][0]),
    ):
        assert old in script
        script = script.replace(old, new)
    line = '{"status":"200","source":"cache","pool":"synapse_sync","header_time":"0.1"}\n'

    def counted():
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        found = re.findall(
            r'^nginx_routed_requests_total{.*source="cache"} (\d+)', text, re.MULTILINE
        )
        return int(found[0]) if found else 0

    mtail = Process(
        "mtail",
        ["sh", "-c", script],
        tmp_path / "mtail.log",
        ready=lambda: accepts(f"127.0.0.1:{port}"),
    )
    # nginx keeps it open, and always writes at its end.
    with log.open("a") as nginx, mtail:

        def write(lines):
            nginx.write(line * lines)
            nginx.flush()

        wait_until(lambda: write(1) or counted(), "lines are counted")
        write(100)
        wait_until(lambda: log.stat().st_size < 4000, "the log is emptied")
        before = counted()
        wait_until(lambda: write(1) or counted() > before, "lines are counted again")
        assert mtail.alive
        group = mtail.pid

    def gone():
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(gone, "nothing is left that keeps the log short")


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
