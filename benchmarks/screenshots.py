"""Pictures of a report's page for docs/: its beginning, and its plots at three widths.

`python -m benchmarks.screenshots runs/NAME/report/index.html` writes report.png, report_1440.png and report_1024.png
(light, two cells pinned in the last) and report_390.png (dark, a phone).
"""

import argparse
import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tests.orchestrator.browser import CHROMIUM

COLOURS = 256  # of a palette, which keeps the files small


def main() -> None:
    """Writes the three pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, help="a report's index.html")
    parser.add_argument("--folder", type=Path, default=Path("docs"))
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        (options.folder / "report.png").write_bytes(picture(browser, options.page, 1000, 2046, "light", "header"))
        for width, height, scheme in ((1440, 1000, "light"), (1024, 900, "light"), (390, 844, "dark")):
            path = options.folder / f"report_{width}.png"
            path.write_bytes(picture(browser, options.page, width, height, scheme))
            print(path)
        browser.close()


def picture(browser: Browser, path: Path, width: int, height: int, scheme: str, part: str = "#frontier h2") -> bytes:
    """The page from one of its parts on, as a PNG; at 1024 pixels with two cells pinned."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(path.resolve().as_uri())
    page.locator(part).first.evaluate("part => part.scrollIntoView()")
    if width == 1024:
        pin(page, ("End", "Home"))
    page.wait_for_timeout(500)
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(COLOURS, kmeans=2)
    page.close()
    written = io.BytesIO()
    shot.save(written, "PNG", optimize=True)
    return written.getvalue()


def pin(page: Page, keys: tuple[str, ...]) -> None:
    plot = page.locator('figure[data-kind="frontier"] .plot').first
    plot.evaluate("plot => plot.focus({preventScroll: true})")
    for key in keys:
        page.keyboard.press(key)
        page.keyboard.press("Enter")
    plot.evaluate("plot => plot.blur()")


if __name__ == "__main__":
    main()
