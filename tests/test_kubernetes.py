"""The manifest: that Kubernetes takes it, that its parts agree, and that what it starts works.

No Kubernetes runs here, but its schemas do, and the programs, with the manifest's own arguments and
files.
"""

import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import kubernetes_validate
import pytest
import yaml

from tests.fake_synapse import FakeSynapse, served
from tests.stack.nginx import SHIPPED, keep_within
from tests.stack.process import Process, accepts, free_port
from whoami_router import __version__
from whoami_router.cli.serve import command as serve
from whoami_router.settings import Settings, Tcp, Unix

MANIFEST = Path(__file__).parents[1] / "deploy/kubernetes/whoami-router.yaml"
USERS = [f"user{number}" for number in range(20)]

documents = list(yaml.safe_load_all(MANIFEST.read_text()))
config_map, deployment, service = documents
pod = deployment["spec"]["template"]["spec"]
containers = {each["name"]: each for each in pod["initContainers"] + pod["containers"]}
router, nginx, nginx_files = (
    containers[name] for name in ("whoami-router", "nginx", "nginx-files")
)
every_container = pytest.mark.parametrize("container", containers.values(), ids=containers)


def mounts(container):
    """Return what is mounted where: {path in the container: mount}."""
    return {mount["mountPath"]: mount for mount in container["volumeMounts"]}


def router_settings():
    """Return what the router's arguments mean to it; any other word than an option's fails."""
    word, *arguments = router["args"]
    assert word == "serve"
    return Settings(**serve.make_context("serve", arguments).params)


@pytest.mark.parametrize("version", ["1.29", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("document", documents, ids=lambda document: document["kind"])
def test_kubernetes_takes_it(document, version):
    kubernetes_validate.validate(document, version, strict=True)


def test_it_is_plain_yaml_that_every_tool_reads():
    # Merge keys are of YAML 1.1 only, and kubectl and kustomize do not agree about them.
    assert "<<" not in MANIFEST.read_text()


def test_labels_meet():
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()


def test_all_of_it_has_one_name():
    assert {document["metadata"]["name"] for document in documents} == {"synapse-nginx"}


def test_service_leads_to_nginx_and_to_nothing_else():
    [port] = service["spec"]["ports"]
    [listening] = nginx["ports"]
    assert port["targetPort"] == listening["name"]
    assert f"listen {listening['containerPort']};" in (SHIPPED / "conf.d/synapse.conf").read_text()
    assert nginx["readinessProbe"]["tcpSocket"]["port"] == listening["name"]


def test_every_volume_is_there_and_of_use():
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {mount["name"] for each in containers.values() for mount in each["volumeMounts"]}
    assert mounted == set(volumes)
    assert volumes["configuration"]["configMap"]["name"] == config_map["metadata"]["name"]


def test_each_file_of_the_configuration_takes_the_place_of_one_that_is_there():
    """In a read-only mount there is no other place, and the Pod would not start."""
    files = {path: mount["subPath"] for path, mount in mounts(nginx).items() if "subPath" in mount}
    assert set(files.values()) == set(config_map["data"])
    for path, name in files.items():
        assert Path(path).name == name
        assert (SHIPPED / Path(path).relative_to("/etc/nginx")).is_file()


def directives(text, upstream):
    """Return what an upstream says beside its servers."""
    [block] = re.findall(rf"^ *upstream {upstream} {{\n(.*?)}}", text, re.MULTILINE | re.DOTALL)
    return {
        found for found in re.findall(r"^ *(\w.*?;)", block, re.MULTILINE) if "server " not in found
    }


def test_upstreams_say_what_ours_say():
    here, ours = config_map["data"]["upstreams.conf"], SHIPPED / "conf.d/upstreams.conf"
    for name in re.findall(r"upstream (\w+)", here):
        expected = directives(ours.read_text(), name)
        if name == "whoami_router":
            expected.remove("hash $token_routing_key consistent;")  # for several, and here is one
        assert directives(here, name) == expected


def test_no_token_gets_into_a_log_by_an_error():
    said = "error_log stderr emerg;"
    assert said in (SHIPPED / "snippets/access_log.conf").read_text()
    assert said in config_map["data"]["access_log.conf"]


def test_nginx_reads_what_is_written_before_it_starts():
    assert nginx_files["args"] == ["nginx-files", "/etc/nginx"]
    assert "restartPolicy" not in nginx_files
    written, read = mounts(nginx_files)["/etc/nginx"], mounts(nginx)["/etc/nginx"]
    assert written["name"] == read["name"]
    assert read["readOnly"]


def test_router_is_found_where_it_listens():
    listen = router_settings().listen
    assert isinstance(listen, Unix)
    assert f"server {listen};" in config_map["data"]["upstreams.conf"]
    directory = str(listen.path.parent)
    assert mounts(router)[directory]["name"] == mounts(nginx)[directory]["name"]
    assert not mounts(router)[directory].get("readOnly")


def test_router_is_seen_where_it_says_how_it_is():
    admin = router_settings().admin_listen
    [port] = router["ports"]
    assert admin == Tcp("0.0.0.0", port["containerPort"])  # the Pod's address
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/scrape"] == "true"
    assert annotations["prometheus.io/port"] == str(admin.port)
    assert f"port: {port['name']}}}" in MANIFEST.read_text()  # the PodMonitor's


def test_router_is_started_anew_when_it_hangs_and_not_when_synapse_does():
    [port] = router["ports"]
    assert router["livenessProbe"]["httpGet"] == {"path": "/health", "port": port["name"]}
    assert {"readinessProbe", "startupProbe"}.isdisjoint(router)  # nginx waits for neither


def test_router_is_asked_until_nginx_has_ended():
    """A sidecar ends last; any other container would end together with nginx."""
    assert router in pod["initContainers"]
    assert router["restartPolicy"] == "Always"
    assert pod["terminationGracePeriodSeconds"] > 30 + int(
        nginx["lifecycle"]["preStop"]["exec"]["command"][1]
    )


def test_one_pod_that_is_away_is_not_all():
    assert deployment["spec"]["replicas"] >= 2


@every_container
def test_pod_security_is_restricted(container):
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert all(set(volume) & {"emptyDir", "configMap"} for volume in pod["volumes"])
    context = dict(container["securityContext"])
    assert context.pop("allowPrivilegeEscalation") is False
    assert context.pop("readOnlyRootFilesystem") is True
    assert context.pop("capabilities") == {"drop": ["ALL"]}
    assert 0 not in context.values()
    assert set(context) <= {"runAsUser", "runAsGroup"}
    assert not [port for port in container.get("ports", []) if "hostPort" in port]


def test_nginx_is_not_root_though_its_image_is():
    context = nginx["securityContext"]
    assert context["runAsUser"] > 0
    assert context["runAsGroup"] > 0


@pytest.mark.parametrize("container", [router, nginx], ids=["router", "nginx"])
def test_memory_is_bounded_and_processors_are_not(container):
    resources = container["resources"]
    assert set(resources["requests"]) == {"cpu", "memory"}
    assert set(resources["limits"]) == {"memory"}


@every_container
def test_images_are_pinned_and_named_without_a_registry(container):
    name, tag = container["image"].split(":")
    assert "/" not in name
    if name == "whoami-router":
        assert tag == __version__
    else:
        compose = (MANIFEST.parents[2] / "docker-compose.yml").read_text()
        assert f"image: {container['image']}\n" in compose


@pytest.fixture
def workers():
    """Return stand-ins for Synapse's processes by the addresses that the manifest has for them."""
    names = re.findall(r"server ([\w-]+:\d+)", config_map["data"]["upstreams.conf"])
    owners = {f"token-{user}": f"@{user}:example.org" for user in USERS}
    fakes = {name: FakeSynapse(name, owners=owners) for name in names}
    with served_all(list(fakes.values())):
        yield fakes


@contextmanager
def served_all(fakes):
    if not fakes:
        yield
        return
    fake, *others = fakes
    with served(fake) as fake.address, served_all(others):
        yield


def elsewhere(text, places):
    for place, other in places.items():
        text = text.replace(place, other)
    return text


@pytest.fixture
def directory():
    """Return a directory that nginx's workers, another user, may enter. pytest's they may not."""
    with TemporaryDirectory(prefix="wr-pod-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def started(workers, directory):
    """Start what the Pod starts, in the order of the Pod; return nginx."""
    files, run = directory / "nginx", directory / "run"
    run.mkdir()
    listen = f"127.0.0.1:{free_port()}"
    admin = router_settings().admin_listen
    places = {
        str(admin): f"127.0.0.1:{free_port()}",
        "/run/whoami-router": str(run),
        "/etc/nginx": str(files),
        "listen 8080;": f"listen {listen};",
        **{name: worker.address for name, worker in workers.items()},
    }

    def program(container):
        return [
            *(sys.executable, "-m", "whoami_router"),
            *(elsewhere(argument, places) for argument in container["args"]),
        ]

    subprocess.run(program(nginx_files), check=True, capture_output=True, cwd="/")
    for path, mount in mounts(nginx).items():
        if "subPath" in mount:
            text = elsewhere(config_map["data"][mount["subPath"]], places)
            Path(elsewhere(path, places)).write_text(text)
    server = files / "conf.d/synapse.conf"
    server.write_text(elsewhere(server.read_text(), places))
    keep_within(directory, files)
    with (
        Process(
            "whoami-router",
            program(router),
            directory / "router.log",
            ready=lambda: accepts(f"unix:{run}/sock") and accepts(places[str(admin)]),
        ),
        Process(
            "nginx",
            [*nginx["command"], "-c", files / "nginx.conf"],
            directory / "nginx.log",
            ready=lambda: accepts(listen),
        ) as running,
    ):
        running.files = files
        running.url, running.admin = f"http://{listen}", f"http://{places[str(admin)]}"
        yield running


def test_what_it_starts_routes_each_user_to_one_worker(started, workers):
    with httpx.Client(base_url=started.url, timeout=30) as client:

        def server(path, user):
            token = {"authorization": f"Bearer token-{user}"}
            return client.get(f"/_matrix/client/v3/{path}", headers=token).json()["server"]

        spread = {user: server("sync?since=1", user) for user in USERS}
        assert set(spread.values()) == {name for name in workers if "synapse-sync-" in name}
        assert spread == {user: server("sync?since=2", user) for user in USERS}
        assert server("sync", "user1") == "synapse-initial-sync-0:8083"
        assert server("login", "user1") == "synapse:8008"
    log = started.log_text()
    assert "user=user1 source=whoami group=sync" in log
    assert "token-user1" not in log


def test_its_probe_is_answered(started):
    probe = router["livenessProbe"]["httpGet"]
    assert httpx.get(started.admin + probe["path"]).status_code == 204
    assert "whoami_router_resolves_total" in httpx.get(started.admin + "/metrics").text


def test_check_finds_nothing_wrong_with_its_nginx(started):
    command = [sys.executable, "-m", "whoami_router", "check", "--only", "nginx", "--nginx-conf"]
    checked = subprocess.run(
        [*command, started.files / "nginx.conf"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert checked.returncode == 0, checked.stdout
