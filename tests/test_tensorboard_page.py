"""A sweep in TensorBoard, seen in a real browser; skipped where there is none.

The pictures are left in $BN_VGG_ARTIFACTS, or in pytest's temporary folder.
"""

import importlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from etils import epath

from bn_vgg import writers
from bn_vgg.hooks import Hooks
from bn_vgg.run_dir import flatten

CELLS = ("baseline", "meanonly_crop", "full_crop_dropout")
RUNS = [f"{cell}-small/seed{seed}" for cell in CELLS for seed in (0, 1)]
SECONDS = 120


def browser():
    """A headless Chromium driven by Selenium, from what is installed."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="Selenium is not installed")
    driver = shutil.which("chromedriver")
    names = ("chromium", "chromium-browser", "google-chrome")
    binary = next(filter(None, map(shutil.which, names)), None)
    if driver is None or binary is None:
        pytest.skip("there is no Chromium with its chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (
        "--headless", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--window-size=1500,900",
    ):  # fmt: skip
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def write_run(folder, cell, seed):
    """What a run of ten epochs would write."""
    config = importlib.import_module(f"configs.{cell}").get_config("small")
    config.seed = seed
    path = folder / config.name / f"seed{seed}"
    hooks = writers.make_hooks(
        Hooks(), epath.Path(path), f"{config.name}/seed{seed}", num_steps=2000,
        profile=False,
    )  # fmt: skip
    hooks.write_start(flatten(config.to_dict()), None)
    for epoch in range(1, 11):
        error = 0.5 / (1 + epoch * (1 + CELLS.index(cell)) / 4) + 0.01 * seed
        scalars = {"train/error_rate": 0.8 * error, "valid/error_rate": error}
        hooks.write_scalars(200 * epoch, scalars | {"valid/best_error_rate": error})
    hooks.write_scalars(2000, {"test/error_rate": error})


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of a TensorBoard that shows a sweep of three cells and two seeds."""
    folder = tmp_path_factory.mktemp("board") / "runs" / "mine"
    for cell in CELLS:
        for seed in (0, 1):
            write_run(folder, cell, seed)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [
            sys.executable, "-m", "tensorboard.main", f"--logdir={folder.parent}",
            f"--port={port}", "--load_fast=false",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        found = f"http://localhost:{port}"
        wait_for(lambda: all(run in read(f"{found}/data/runs") for run in RUNS))
        yield found
    finally:
        process.kill()
        process.wait()


def read(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, OSError):
        return ""


def wait_for(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_a_sweep_can_be_read(address, tmp_path_factory):
    """Runs are named by cell and seed, curves overlay, and the table compares the cells."""
    artifacts = os.environ.get("BN_VGG_ARTIFACTS") or tmp_path_factory.mktemp("artifacts")
    artifacts = pathlib.Path(artifacts)
    artifacts.mkdir(parents=True, exist_ok=True)
    driver = browser()
    try:
        driver.get(f"{address}/?tagFilter=(train%7Cvalid)/error_rate&smoothing=0#timeseries")

        def texts(selector):
            found = driver.find_elements("css selector", selector)
            return " ".join("".join(element.text.split()) for element in found)

        wait_for(lambda: all(f"mine/{run}" in texts("runs-data-table") for run in RUNS))
        wait_for(lambda: "valid/error_rate" in texts("scalar-card"))
        time.sleep(3)  # the curves are drawn on a canvas, which says nothing
        assert driver.save_screenshot(str(artifacts / "tensorboard_curves.png"))

        driver.get(f"{address}/#hparams")
        driver.refresh()
        wait_for(lambda: "full_crop_dropout" in table_text(driver))
        shown = table_text(driver)
        assert all(column in shown for column in writers._HPARAM_COLUMNS)
        assert "mean_only" in shown
        assert "valid/best_error_rate" in shown
        assert driver.save_screenshot(str(artifacts / "tensorboard_hparams.png"))
    finally:
        driver.quit()


def table_text(driver):
    """The text of the hparams page, whose parts are hidden from plain selectors."""
    return driver.execute_script(
        """
        function text(node) {
          let found = node.nodeType === Node.TEXT_NODE ? node.textContent : '';
          for (const child of node.shadowRoot ? node.shadowRoot.childNodes : [])
            found += text(child) + ' ';
          for (const child of node.childNodes) found += text(child) + ' ';
          return found;
        }
        return text(document.body);
        """
    )
