"""Makes a small report and its pictures and checks them in headless Chromium; see report_check.

Arguments: a folder, the browser.
"""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

import fastpure as fp
from fastpure.data import load_dataset
from fastpure.report import report

SIZES = {"desktop": (1200, 1600), "phone": (390, 844)}
"""Name -> width and height of the window in CSS pixels."""

# Headless Chromium's window is not narrower than 500 pixels; a frame is as wide as it is told to be. The frame shares
# the outer page's origin because it is written from a string. What scrolls in a container of its own may be wide.
FRAME = """<!DOCTYPE html><title>waiting</title><style>html,body{{margin:0}}iframe{{border:0;display:block}}</style>
<iframe id="f" width="{width}" height="{height}"></iframe><script>
const f = document.getElementById("f");
f.onload = () => {{
  const d = f.contentDocument, w = d.documentElement, out = [];
  d.querySelectorAll("details").forEach(e => e.open = {opened});
  const inside = e => e && (e.classList.contains("scroll") || e.tagName == "PRE" || inside(e.parentElement));
  d.querySelectorAll("body *").forEach(e => {{
    if (!inside(e) && e.getBoundingClientRect().right > {width} + 0.5) out.push(e.tagName + "." + e.className);
  }});
  // A table that scrolls on a phone says so, whatever the browser knows of scrolling.
  const silent = {width} > 640 ? 0 : [...d.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth + 1 &&
    f.contentWindow.getComputedStyle(e, "::before").display == "none").length;
  const broken = [...d.images].filter(i => !i.naturalWidth).length;
  const fetched = f.contentWindow.performance.getEntriesByType("resource").filter(r => !r.name.startsWith("data:"));
  document.title = ["done", w.scrollWidth, w.clientWidth, d.body.scrollHeight, d.images.length, broken,
                    fetched.length, silent,
                    out.slice(0, 3).join(" ") || "-"].join("|");
}};
f.srcdoc = {page};
</script>"""


def make_runs(folder: Path) -> list[Path]:
    """Three tiny runs on digits: a bare classifier, a purified one, and one that differs in its iterations."""
    denoiser, classifier = fp.load_denoiser("digits"), fp.load_classifier("digits")
    data = load_dataset("digits", "test").subset(12)
    defense = fp.Defense(fp.Purifier(denoiser, fp.methods.coup(classifier, t=0.1, dt=0.05)), classifier)
    attacks = [fp.attacks.PGD(eps=0.2, n_iter=n, eot_iter=1) for n in (2, 4)]
    paths = []
    for name, defended, attack in (
        ("bare", classifier, attacks[1]),
        ("coup with a name that is long enough to need more than one line on a phone", defense, attacks[0]),
        ("coup-4", defense, attacks[1]),
    ):
        paths.append(folder / f"{name}.sqlite")
        fp.evaluate(defended, data, attack, fp.protocols.fresh(3), out=paths[-1], progress=False)
    return paths


def browse(browser: str, *words: str) -> str:
    """Run Chromium without a window, its network cut off; what it prints."""
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND", "--no-first-run", "--force-color-profile=srgb"]
    done = subprocess.run([browser, *flags, *words], capture_output=True, text=True, timeout=50)
    if done.returncode:
        raise SystemExit(f"report-check: chromium failed: {done.stderr[-2000:]}")
    return done.stdout


def frame(page: str, width: int, height: int, opened: bool) -> str:
    """A page with ``page`` in a frame of this size, which measures it and writes the result into its title."""
    import json

    text = json.dumps(page).replace("<", "\\u003c")
    return FRAME.format(width=width, height=height, page=text, opened=str(opened).lower())


def album(paths: list[Path]) -> str:
    """A page that shows pictures as any other page would: by ``<img>``, which lets them fetch and run nothing."""
    kinds = {".svg": "svg+xml", ".png": "png"}
    tags = [
        f'<p><img src="data:image/{kinds[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"></p>'
        for path in paths
    ]
    style = "body{margin:1em;background:#fff}img{max-width:100%}"
    return f"<!DOCTYPE html><style>{style}</style>{''.join(tags)}"


def check(folder: Path, browser: str, html: str, size_of: str, dark: bool = False, what: str = "") -> str:
    """Measure and photograph a page at one size; a sentence on what was found."""
    width, height = SIZES[size_of]
    name = f"{what}{size_of}"
    profile = f"--user-data-dir={folder / ('profile-' + name + str(dark))}"
    theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    framed, shot = folder / f"{name}-{dark}.html", folder / f"{name}{'-dark' if dark else ''}.png"
    framed.write_text(frame(html, width, height, opened=not dark))
    dom = browse(browser, profile, *theme, "--virtual-time-budget=4000", "--dump-dom", framed.as_uri())
    found = re.search(r"<title>done\|(.*?)</title>", dom)
    if not found:
        raise SystemExit(f"report-check: FAILED, the page could not be measured at {width} pixels")
    scroll, client, long, images, broken, fetched, silent, out = found[1].split("|")
    if int(scroll) > width or int(client) != width or out != "-":
        raise SystemExit(f"report-check: FAILED, {scroll} pixels of content in a window of {width}: {out}")
    if int(silent):
        raise SystemExit(f"report-check: FAILED, {silent} tables of {name} scroll and do not say so")
    if int(broken) or int(fetched) or not int(images):
        raise SystemExit(f"report-check: FAILED, {images} images, {broken} broken, {fetched} things fetched")
    size = f"--window-size={max(width, 500)},{height}"
    framed.write_text(frame(html, width, height, opened=False))
    browse(
        browser, profile, *theme, size, "--virtual-time-budget=4000", f"--screenshot={shot}", framed.as_uri()
    )
    pixels = np.asarray(Image.open(shot).convert("L"), dtype=np.float64)[:height, :width]
    ink = np.abs(pixels - np.median(pixels)) > 40
    share = float(ink.mean())
    # Ink in all four quarters: a page that stops half way would still have some.
    quarters = [part.mean() for part in np.array_split(ink.any(1), 4)]
    if not 0.005 < share < 0.5 or min(quarters) < 0.05 or (np.median(pixels) < 128) != dark:
        raise SystemExit(f"report-check: FAILED, {shot.name} is blank, half empty or in the wrong theme")
    return f"{name}{', dark' if dark else ''}: {scroll} x {long} pixels, {images} images, {100 * share:.1f} % ink"


def main() -> None:
    """Make, look, say."""
    folder, browser = Path(sys.argv[1]), sys.argv[2]
    paths: list[Path] = []
    figures = folder / "figures"
    formats = ("svg", "png")
    html = report(
        make_runs(folder), folder / "report.html", figures=figures, formats=formats, wrote=paths.append
    )
    pictures = album([path for path in paths if path.parent == figures])
    looks = [
        (html, "desktop", False),
        (html, "desktop", True),
        (html, "phone", False),
        (html, "phone", True),
        (pictures, "phone", False, "pictures-"),
    ]
    with ThreadPoolExecutor(2) as pool:
        for line in pool.map(lambda look: check(folder, browser, *look), looks):
            print(f"report-check: {line}")
    print("report-check: passed")


if __name__ == "__main__":
    main()
