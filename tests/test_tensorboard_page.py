"""A run's files for TensorBoard, and a sweep seen in a real browser, where there is one.

The pictures are left in $BN_VGG_ARTIFACTS, or in pytest's temporary folder.
"""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from etils import epath
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.hparams import metadata

import bn_vgg
from bn_vgg import writers
from bn_vgg.run_dir import flatten

CELLS = ("baseline", "meanonly_crop", "full_crop_dropout")
RUNS = [f"{cell}-small/seed{seed}" for cell in CELLS for seed in (0, 1)]


def test_a_runs_scalars_images_histograms_and_hparams(trained_run):
    events = event_accumulator.EventAccumulator(str(trained_run), size_guidance={"tensors": 0})
    events.Reload()
    tags = set(events.Tags()["tensors"])
    assert tags >= {
        "train/loss", "train/error_rate", "train/gradient_norm", "train/images_per_second",
        "valid/loss", "valid/error_rate", "valid/best_error_rate", "test/error_rate",
        "train/crops", "valid/error_rate_precise", "zz_layers/mean_distance/block0",
    }  # fmt: skip
    groups = {tag.split("/")[0] for tag in tags}
    assert groups == {"_hparams_", "test", "train", "valid", "zz_layers"}
    written = [
        (event.step, float(np.frombuffer(event.tensor_proto.tensor_content, np.float32)[0]))
        for event in events.Tensors("valid/error_rate")
    ]
    lines = [json.loads(x) for x in (trained_run / "metrics.jsonl").read_text().splitlines()]
    expected = [(line["step"], line["valid/error_rate"]) for line in lines]
    assert written == [(step, pytest.approx(value)) for step, value in expected]
    for tag, plugin in (
        ("zz_layers/mean_distance/block0", "scalars"), ("train/crops", "images"),
        ("zz_layers/channels/mean_distance/block0", "histograms"),
    ):  # fmt: skip
        assert events.SummaryMetadata(tag).plugin_data.plugin_name == plugin
    start = metadata.parse_session_start_info_plugin_data(
        events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    )
    assert start.group_name == str(trained_run)  # names the row in the table of runs
    config = flatten(json.loads((trained_run / "config.json").read_text()))
    assert set(start.hparams) == set(config)
    assert start.hparams["model.norm"].string_value == "mean_only"


@pytest.fixture
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
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


def write_run(folder, cell, seed):
    """What a run of ten epochs would write."""
    config = bn_vgg.get_config(f"{cell}:small")
    config.seed = seed
    path = folder / config.name / f"seed{seed}"
    board = writers.TensorBoard(epath.Path(path), f"{config.name}/seed{seed}")
    board.write_start(flatten(config.to_dict()), None)
    for epoch in range(1, 11):
        error = 0.5 / (1 + epoch * (1 + CELLS.index(cell)) / 4) + 0.01 * seed
        scalars = {"train/error_rate": 0.8 * error, "valid/error_rate": error}
        scalars["valid/best_error_rate"] = error
        board.write_epoch(200 * epoch, scalars, {"mean_distance/block0": error}, {})
    board.write_result(2000, {"test_error_rate": error})


@pytest.fixture
def address(tmp_path):
    """Of a TensorBoard that shows a sweep of three cells and two seeds."""
    for cell in CELLS:
        for seed in (0, 1):
            write_run(tmp_path / "runs/mine", cell, seed)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [
            sys.executable, "-m", "tensorboard.main", f"--logdir={tmp_path / 'runs'}",
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
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_a_sweep_can_be_read(browser, address, tmp_path):
    """Runs are named by cell and seed, curves overlay, errors come before layers."""
    artifacts = pathlib.Path(os.environ.get("BN_VGG_ARTIFACTS") or tmp_path)
    artifacts.mkdir(parents=True, exist_ok=True)

    def texts(selector):
        found = browser.find_elements("css selector", selector)
        return " ".join("".join(element.text.split()) for element in found)

    browser.get(f"{address}/?smoothing=0#timeseries")
    wait_for(lambda: all(f"mine/{run}" in texts("runs-data-table") for run in RUNS))
    groups = ["test", "train", "valid", "zz_layers"]
    wait_for(lambda: all(group in texts(".group-title-wrapper") for group in groups))
    shown = texts(".group-title-wrapper")
    assert sorted(groups, key=shown.index) == groups
    time.sleep(3)  # the curves are drawn on a canvas, which says nothing
    assert browser.save_screenshot(str(artifacts / "tensorboard_curves.png"))

    browser.get(f"{address}/#hparams")
    browser.refresh()
    wanted = [*writers._COLUMNS, "valid/best_error_rate", "mean_only", "full_crop_dropout"]
    wait_for(lambda: all(text in all_text(browser) for text in wanted))
    assert browser.save_screenshot(str(artifacts / "tensorboard_hparams.png"))


def all_text(browser):
    """The text of the page, whose parts are hidden from plain selectors."""
    return browser.execute_script(
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
