"""Takes docs/assets/report-light.png and report-dark.png: the first screen of reports/sample.html in headless Chromium."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "docs" / "assets"
WIDTH, HEIGHT = 1120, 690
"""of the window, CSS pixels"""


def main() -> None:
    """Write both pictures."""
    browser_path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        sys.exit("no chromium: install one, or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
            page.goto((ROOT / "reports" / "sample.html").as_uri(), timeout=300_000)
            page.screenshot(path=ASSETS / f"report-{scheme}.png", timeout=300_000)
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
