"""Makes the pictures of the status page that README.md shows: ``python -m tests.status``.

A real router under load for two minutes, with a Synapse that is away for a while.
"""

import math
import sys
import tempfile
import time
from contextlib import suppress
from io import BytesIO
from pathlib import Path

from PIL import Image
from selenium.webdriver import Chrome
from starlette.responses import Response

from tests.fake_synapse import FakeSynapse, served
from tests.stack.process import DidNotHappen, free_port, wait_until
from tests.stack.router import Router
from tests.status.browser import chromium, scheme, viewport
from tests.status.load import Load, loaded
from tests.status.page import Page

DOCS = Path(__file__).parents[2] / "docs"
WIDTH = 1200

# Seconds from the beginning: the page has two minutes on its axis.
AWAY, BACK, PICTURE = 50, 66, 108


def town(load: Load) -> list[str | None]:
    """Return a round of requests, more and fewer of them as time goes by."""
    while len(load.known) < 20:
        load.someone_new()
    age = time.monotonic() - load.started
    size = 14 + 5 * math.sin(age / 17) + 2 * load.rng.random()
    tokens: list[str | None] = [load.someone_known() for _ in range(int(size))]
    for share, one in (
        (0.35 + 0.2 * math.sin(age / 11), load.someone_new),
        (0.25 if 85 < age < 97 else 0.05, load.nobody),
        (0.2, lambda: None),
    ):
        if load.rng.random() < share:
            tokens.append(one())
    return tokens


def picture(driver: Chrome, path: Path) -> None:
    """Write the whole page as a PNG with 256 colours, a third of its size."""
    height = driver.execute_script("return document.querySelector('footer').offsetTop + 70")
    viewport(driver, WIDTH, height)
    with suppress(DidNotHappen):  # one frame at the new size
        wait_until(lambda: driver.execute_script("return innerHeight") == height, "its size")
    image = Image.open(BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    # The way of choosing colours that keeps the rare ones, too: those of the legends.
    few = image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def main() -> None:
    """Write docs/status-light.png and docs/status-dark.png."""
    synapse, admin = FakeSynapse(), f"127.0.0.1:{free_port()}"
    options = ("--admin-listen", admin, "--cache-size", "500", "--rejected-size", "100")
    with (
        tempfile.TemporaryDirectory() as directory,
        served(synapse) as address,
        Router(Path(directory), f"http://{address}", *options) as router,
        chromium() as driver,
        loaded(router.address, synapse, town) as load,
    ):
        viewport(driver, WIDTH, 900)
        driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        page = Page(driver)
        page.open(f"http://{admin}/")
        start = time.monotonic()

        def wait(seconds: float) -> None:
            wait_until(lambda: time.monotonic() - start > seconds, "time goes by", seconds=200)

        wait(AWAY)
        load.synapse.answer = Response(status_code=503)
        wait(BACK)
        load.synapse.answer = None
        wait(PICTURE)
        for name in ("light", "dark"):
            scheme(driver, name)
            picture(driver, DOCS / f"status-{name}.png")
            print(f"docs/status-{name}.png: {(DOCS / f'status-{name}.png').stat().st_size} bytes")


if __name__ == "__main__":
    sys.exit(main())
