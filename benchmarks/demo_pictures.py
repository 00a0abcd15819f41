"""The README's pictures of the demo: `python -m benchmarks.demo_pictures` after `make demo`. It needs Chromium.

Each picture is a section of the run's report, photographed at the width of a README and cut to its content.
"""

import re
import shutil
import subprocess  # nosec B404: it starts a browser on this machine
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

ROOT = Path(__file__).parent.parent
SECTIONS = {"accuracy": "demo-curves.png", "samples": "demo-samples.png"}
"""Picture by the id of its section in the report."""
WIDTH, HEIGHT, MARGIN = 772, 1200, 16
"""Size of the browser's window, and of the border that is left around the content, in pixels."""


def main() -> None:
    """Writes every picture into docs/pictures."""
    page = (ROOT / "runs" / "demo" / "report.html").read_text(encoding="utf-8")
    head = page[: page.index("<body>")]
    for section, name in SECTIONS.items():
        found = re.search(rf'<section id="{section}">.*?</section>', page, re.DOTALL)
        assert found is not None, section
        with tempfile.TemporaryDirectory() as folder:
            alone, picture = Path(folder) / "page.html", Path(folder) / "picture.png"
            alone.write_text(f"{head}<body>{found[0]}</body></html>", encoding="utf-8")
            photograph(alone, picture)
            with Image.open(picture) as image:
                small = trim(image.convert("RGB")).quantize(256)
                small.save(ROOT / "docs" / "pictures" / name, optimize=True)


def photograph(page: Path, picture: Path) -> None:
    """Writes a picture of a page, as large as the window."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--hide-scrollbars",
            f"--window-size={WIDTH},{HEIGHT}",
            f"--screenshot={picture}",
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
    )  # nosec B603: no shell, and no text of others


def trim(image: Image.Image) -> Image.Image:
    """Returns an RGB picture without the white above and below its content."""
    box = ImageChops.difference(image, Image.new("RGB", image.size, "white")).getbbox()
    assert box is not None, "an empty picture"
    return image.crop((0, max(0, box[1] - MARGIN), image.width, min(image.height, box[3] + MARGIN)))


if __name__ == "__main__":
    main()
