"""
Time the page of a large map: seconds until it is drawn, and memory of the server.

python benchmarks/view.py [--species 62] [--width 2000] [--height 4000] [--map MAP.tif]
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from affine import Affine

from butterfly_sdm.mapping.map_file import Band, open_map

SERVE = """
import sys, threading
from butterfly_sdm.mapping.viewer import make_server
server = make_server(sys.argv[1])
print(server.server_address[1], flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) / 1024)  # ru_maxrss is at least that of the parent
"""


def make_map(folder: Path, species: int, height: int, width: int) -> Path:
    """Write a made-up map of waves, noise and an empty rim."""
    random = np.random.default_rng(0)
    bands = [Band(f"Species {number}") for number in range(species)]
    grid = Affine(320.0, 0.0, 0.0, 0.0, -320.0, 320.0 * height)
    path = folder / "map.tif"
    shape = height, width
    with open_map(path, shape, grid, "EPSG:27700", bands, dtype="uint16", scratch=folder) as writer:
        for row in range(0, height, 256):
            y, x = np.mgrid[row : min(row + 256, height), :width].astype(np.float32)
            waves = [
                np.sin(x / (20 + 3 * k) + k) * np.cos(y / (30 + 2 * k)) for k in range(species)
            ]
            values = (0.5 + 0.5 * np.stack(waves)) * random.uniform(0.9, 1, (1, *x.shape))
            values[:, ((2 * x / width - 1) ** 2 + (2 * y / height - 1) ** 2) > 0.96] = np.nan
            writer.write(slice(row, row + len(x)), values)
        writer.tag(mode="exact")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, size in (("species", 62), ("width", 2000), ("height", 4000)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--map", type=Path, help="that is there, in place of a made-up one")
    asked = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as scratch:
        size = asked.species, asked.height, asked.width
        path = asked.map or make_map(Path(scratch), *size)
        print(f"map: {path.stat().st_size / 1e6:.0f} MB")
        start = time.perf_counter()
        server = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        port = int(server.stdout.readline())
        print(f"server ready, imports included: {time.perf_counter() - start:.2f} s")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
            )
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            for what in ("first", "second"):
                start = time.perf_counter()
                page.goto(f"http://127.0.0.1:{port}/")
                page.wait_for_selector("body[data-ready=yes]")
                print(f"page drawn, {what} time: {time.perf_counter() - start:.2f} s")
            start = time.perf_counter()
            page.select_option("#band", "5")
            page.wait_for_selector("body[data-ready=yes]")
            print(f"another species: {time.perf_counter() - start:.2f} s")
            page.evaluate("map.setView(map.getCenter(), zooms, {animate: false})")
            page.wait_for_timeout(200)
            page.wait_for_selector("body[data-ready=yes]")
            page.click("#map")
            page.wait_for_selector("#values tr")
            browser.close()
        memory, _ = server.communicate("")
        print(f"server at most: {float(memory):.0f} MB")
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"CPU of server and browser driver: {used.ru_utime + used.ru_stime:.1f} s")


if __name__ == "__main__":
    main()
