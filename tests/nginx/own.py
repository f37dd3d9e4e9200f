"""An nginx with a configuration of one's own, into which files of ours may be copied."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from tests.stack.nginx import temporary_files_in
from tests.stack.process import Process, accepts, free_port

LISTEN = "listen 8080;"


@contextmanager
def own_nginx(
    http: str, *, main: str = "", files: Mapping[str, str]
) -> Iterator[tuple[httpx.Client, Path]]:
    """Start it; yield a client and the directory in which everything is.

    ``http`` is what stands in the http block, with a server that listens at port 8080 (here at a
    free one). ``main`` stands outside. ``files`` are names and texts, beside nginx.conf.
    """
    # Where the user that nginx's workers run as can get to.
    with TemporaryDirectory(prefix="wr-site-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        place = directory / "nginx"
        place.mkdir()
        for file, text in files.items():
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            (place / file).write_text(text.replace("/dev/shm/whoami_router", f"{directory}/edge"))
        address = f"127.0.0.1:{free_port()}"
        assert LISTEN in http
        http = http.replace(LISTEN, f"listen {address};")
        (place / "nginx.conf").write_text(
            f"""
            {main}
            pid {directory}/pid;
            events {{ }}
            http {{
                {temporary_files_in(directory)}
                access_log off;
                include conf.d/*.conf;
                {http}
            }}"""
        )
        nginx = Process(
            "nginx",
            ["nginx", "-e", "stderr", "-c", place / "nginx.conf", "-g", "daemon off;"],
            directory / "log",
            ready=lambda: accepts(address),
        )
        with nginx, httpx.Client(base_url=f"http://{address}", timeout=30) as client:
            yield client, directory
