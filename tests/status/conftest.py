"""A browser for all tests of the page, and what it may look at."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import whoami_router
from tests.fake_synapse import FakeSynapse, served
from tests.stack.process import free_port
from tests.stack.router import Router
from tests.status.browser import chromium, scheme, viewport
from tests.status.page import Page
from whoami_router.admin import create_admin

FUNCTIONS = Path(__file__).with_name("functions.js")
PAGE = Path(whoami_router.__file__).with_name("status.html")


@pytest.fixture(scope="package")
def driver():
    with chromium() as driver:
        yield driver


@pytest.fixture
def page(driver):
    viewport(driver, 1200, 900)
    scheme(driver, "light")
    for log in ("browser", "performance"):
        driver.get_log(log)  # what the test before has left there
    yield Page(driver)
    driver.get("about:blank")  # or it would go on asking, while the next test begins


@dataclass
class Deployment:
    """A router with a listener for administrators, and the Synapse that it asks."""

    router: Router
    synapse: FakeSynapse
    admin: str
    synapse_url: str

    @property
    def url(self) -> str:
        """Where the status page is."""
        return f"http://{self.admin}/"


@pytest.fixture
def deployment(tmp_path):
    synapse, admin = FakeSynapse(), f"127.0.0.1:{free_port()}"
    with served(synapse) as address:
        url = f"http://{address}"
        options = ("--admin-listen", admin, "--whoami-timeout", "1")
        with Router(tmp_path, url, *options) as router:
            yield Deployment(router, synapse, admin, url)


@dataclass
class Canned:
    """Metrics that a test writes down itself, served by the real application."""

    text: str = ""
    status_url: str = ""
    asked: int = 0

    def exposition(self, _: str) -> tuple[bytes, str]:
        self.asked += 1
        return self.text.encode(), "text/plain; version=0.0.4"


@pytest.fixture
def canned():
    canned = Canned()
    with canned_router(canned) as url:
        canned.status_url = url
        yield canned


@contextmanager
def canned_router(canned: Canned) -> Iterator[str]:
    async def nothing() -> None:
        pass

    app = create_admin(check=nothing, metrics=canned, close=nothing)
    with served(app) as address:
        yield f"http://{address}/"


@pytest.fixture(scope="module")
def functions(driver):
    """A page that does not look by itself; a module's, because to load it takes a while."""
    body, _, rest = PAGE.read_text().partition("<body>")[2].partition("<script>")
    script, end, _ = rest.partition("\nrun();\n")
    assert end
    driver.get("data:text/html,<title>functions</title>")
    driver.execute_script(
        """document.body.append(document.createRange().createContextualFragment(arguments[0]));
        const script = document.createElement("script");
        script.textContent = arguments[1];
        document.body.append(script);""",
        body,
        script + FUNCTIONS.read_text(),
    )
    yield driver
    driver.get("about:blank")


@pytest.fixture
def run(functions):
    """Return a function that runs code beside the page's functions."""
    functions.execute_script("forget()")
    return functions.execute_script
