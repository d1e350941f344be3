"""Latency of the explorer: the server's answer, and from a slider's change to the new image on the screen.

    infogan train --preset mnist --steps 200 --storage runs --name look
    python -m benchmarks.explorer runs/look

Needs chromium and playwright (the extra ``dev``).
"""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.parse

from playwright.sync_api import sync_playwright

from benchmarks.figures import publish

ROUNDS = 100
# Resolves with the milliseconds from a slider's input event to the frame that shows the image of its value.
MOVE = """value => new Promise(done => {
  const slider = document.querySelector('#controls input[type=range]'), image = document.querySelector('#grid-a img');
  const code = slider.closest('fieldset').querySelector('b').textContent, start = performance.now();
  const look = () => JSON.parse(image.dataset.drawn).codes[code] === Number(slider.value)
    ? requestAnimationFrame(() => done(performance.now() - start)) : requestAnimationFrame(look);
  slider.value = value;
  slider.dispatchEvent(new Event('input', { bubbles: true }));
  look();
})"""


def main(path: str) -> None:
    command = [sys.executable, "-m", "infogan_ray", "explore", path, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        about = model_of(address)
        print(f"{path}: images {about['size']} x {about['size']} x {about['channels']}, grid 8 x 8, {ROUNDS} each\n")
        figures = {
            "64 images as one PNG from the server": median_and_p95(grids(address, about)),
            "from a slider's change to its image in the browser": median_and_p95(moves(address)),
        }
        publish(figures, None)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


def connect(address: str) -> http.client.HTTPConnection:
    """A direct connection: no proxy of the environment reaches a server on loopback."""
    return http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc)


def model_of(address: str) -> dict:
    connection = connect(address)
    connection.request("GET", "/api/model")
    return json.load(connection.getresponse())


def grids(address: str, about: dict) -> list[float]:
    connection = connect(address)
    code = next(code for code in about["codes"] if code["control"] == "slider")["code"]
    times = []
    for turn in range(ROUNDS + 5):
        body = {"checkpoint": about["best"], "codes": {code: turn / ROUNDS}, "seed": 0}
        start = time.perf_counter()
        connection.request("POST", "/api/grid", json.dumps(body).encode())
        assert connection.getresponse().read().startswith(b"\x89PNG")
        times.append(1000 * (time.perf_counter() - start))
    return times[5:]


def moves(address: str) -> list[float]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        page.locator("#strips .strip").first.wait_for()
        times = [page.evaluate(MOVE, (turn % 40) / 20) for turn in range(1, ROUNDS + 6)]
        browser.close()
    return times[5:]


def median_and_p95(times: list[float]) -> str:
    return f"{statistics.median(times):.0f} ms (95% within {statistics.quantiles(times, n=20)[-1]:.0f} ms)"


if __name__ == "__main__":
    main(*sys.argv[1:])
