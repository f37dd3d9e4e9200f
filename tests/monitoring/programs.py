"""mtail and Prometheus, with the files of deploy/."""

from contextlib import suppress
from pathlib import Path

import httpx
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.stack.process import Process, accepts, free_port

DEPLOY = Path(__file__).parents[2] / "deploy"


def logged_to(log: Path, log_format: str) -> tuple[str, str, str]:
    """Return the edit that has nginx log to a file."""
    return ("snippets/access_log.conf", "\naccess_log off;", f"\naccess_log {log} {log_format};")


def open_files(pid: int) -> set[Path]:
    """Return what a process has open."""
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.add(descriptor.readlink())
    return found


class Mtail(Process):
    """Debian's mtail with deploy/mtail, reading one log."""

    def __init__(self, directory: Path, log: Path) -> None:
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        super().__init__(
            "mtail",
            [
                *("mtail", "--progs", DEPLOY / "mtail", "--logs", log, "--logtostderr"),
                *("--address", "127.0.0.1", "--port", str(port)),
            ],
            directory / "mtail.log",
            # It listens before it has found the end of the log, from which on it counts.
            ready=lambda: accepts(self.address) and log in open_files(self.pid),
        )

    def series(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Return what our program has counted, by name and labels."""
        text = httpx.get(f"http://{self.address}/metrics", timeout=30).text
        return {
            (sample.name, frozenset(sample.labels.items() - {("prog", "whoami-router.mtail")})): (
                sample.value
            )
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.startswith("nginx_")
        }


class Prometheus(Process):
    """Prometheus with deploy/prometheus, scraping these targets of each job, and often."""

    def __init__(self, directory: Path, targets: dict[str, list[str]]) -> None:
        configuration = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
        configuration["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
        configuration["rule_files"] = [
            str(DEPLOY / "prometheus" / file) for file in configuration["rule_files"]
        ]
        for job in configuration["scrape_configs"]:
            job["static_configs"] = [{"targets": targets.pop(job["job_name"])}]
        assert not targets, "jobs that prometheus.yml has not"
        file = directory / "prometheus.yml"
        file.write_text(yaml.safe_dump(configuration))
        self.address = f"127.0.0.1:{free_port()}"
        super().__init__(
            "prometheus",
            [
                "prometheus",
                f"--config.file={file}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={self.address}",
            ],
            directory / "prometheus.log",
            ready=lambda: accepts(self.address) and self._get("/-/ready").is_success,
            seconds=60,
        )

    def _get(self, path: str, **parameters: str) -> httpx.Response:
        return httpx.get(f"http://{self.address}{path}", params=parameters, timeout=30)

    def _data(self, path: str, **parameters: str):
        answer = self._get(path, **parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def values(self, expression: str) -> list[float]:
        """Return the values of an expression now, one for each series."""
        result = self._data("/api/v1/query", query=expression)["result"]
        return [float(series["value"][1]) for series in result]

    def label_values(self, label: str, series: str) -> list[str]:
        """Return what a label is in the series that match."""
        return self._data(f"/api/v1/label/{label}/values", **{"match[]": series})

    def names(self) -> set[str]:
        """Return the names of all metrics."""
        return set(self._data("/api/v1/label/__name__/values"))

    def rules(self) -> dict[str, dict]:
        """Return the rules by name, with their state."""
        groups = self._data("/api/v1/rules")["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}
