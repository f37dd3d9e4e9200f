"""A real Chromium without a window, with a profile of its own that goes when it ends."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

CHROMIUM = "/usr/bin/chromium"
CHROMEDRIVER = "/usr/bin/chromedriver"


@contextmanager
def chromium(*, width: int = 1200, height: int = 900) -> Iterator[Chrome]:
    """Yield a driver whose logs hold the console, and each request that any page made."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in (
            "--headless=new",
            "--no-sandbox",  # containers, and root, have none
            "--disable-dev-shm-usage",  # which is small in containers
            "--disable-background-networking",
            "--no-first-run",
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = Chrome(options=options, service=Service(CHROMEDRIVER))
        try:
            driver.set_script_timeout(10)
            yield driver
        finally:
            driver.quit()


def viewport(driver: Chrome, width: int, height: int) -> None:
    """Give the page so many CSS pixels; 0 and 0 return to the window's."""
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )


def scheme(driver: Chrome, name: str) -> None:
    """Let the page believe that its reader prefers ``light`` or ``dark``."""
    features = [{"name": "prefers-color-scheme", "value": name}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def requested(driver: Chrome) -> list[str]:
    """Return the URLs that were asked for since the last call, data: URLs left out."""
    urls = []
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            urls.append(message["params"]["request"]["url"])
    return [url for url in urls if not url.startswith("data:")]
