"""The status page in a browser, as its reader sees it."""

from collections.abc import Callable

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from tests.stack.process import DidNotHappen, wait_until


class Page:
    """The page that the browser shows; open it first."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """Load the page and return once it has had an answer, or none."""
        self.driver.get(url)
        self.wait_until(lambda: self.tone != "wait", "the page has looked")

    def run(self, script: str, *arguments: object) -> object:
        """Return what the script returns; it sees the page's own functions."""
        return self.driver.execute_script(script, *arguments)

    def text(self, id_: str) -> str:
        """Return the words of one element."""
        return self.driver.find_element(By.ID, id_).text

    @property
    def headline(self) -> str:
        """What the page says first."""
        return self.text("headline")

    @property
    def details(self) -> str:
        """What it says below that."""
        return self.text("details")

    @property
    def tone(self) -> str | None:
        """``good``, ``warn``, ``bad`` or ``wait``."""
        return self.driver.find_element(By.ID, "verdict").get_attribute("data-tone")

    def table(self, name: str) -> dict[str, list[str]]:
        """Return the cells of each row of a table by the row's name."""
        return self.run(
            """const rows = document.querySelectorAll(`#t-${arguments[0]} tbody tr`);
            const words = (row, kind) => [...row.querySelectorAll(kind)].map((e) => e.textContent);
            const named = (row) => [words(row, "bdi")[0], words(row, "td")];
            return Object.fromEntries([...rows].map(named))""",
            name,
        )

    def drawn(self, name: str) -> dict[str, str]:
        """Return the outlines in a chart by the colour they have."""
        return self.run(
            """const paths = document.querySelectorAll(`#c-${arguments[0]} path`);
            const named = (path) => ["class", "d"].map((name) => path.getAttribute(name));
            return Object.fromEntries([...paths].map(named))""",
            name,
        )

    @property
    def looks(self) -> int:
        """How many times the page has looked, as far as it remembers."""
        return self.run("return page.points.length")

    def look(self) -> None:
        """Have the page look once more, and return when it has."""
        before = self.run("return page.points.at(-1).time")
        self.look_until(lambda: self.run("return page.points.at(-1).time") != before, "it looks")

    def look_until(self, condition: Callable[[], object], what: str) -> None:
        """Have the page look more often than it does by itself, until the condition is true."""

        def looked() -> object:
            self.run("wake()")  # as when somebody comes back to its tab
            return condition()

        self.wait_until(looked, what)

    def wait_until(
        self, condition: Callable[[], object], what: str, *, seconds: float = 20
    ) -> None:
        """Return once the condition is true; the error says what the page says instead."""
        try:
            wait_until(condition, what, seconds=seconds)
        except DidNotHappen as exc:
            exc.add_note(f"The page says: {self.headline} {self.details}")
            raise
