"""Several devices and several processes compute what one computes."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from bn_vgg.errors import UserError
from bn_vgg.parallel import check_batch_size, round_up
from bn_vgg.trained import load
from tests.conftest import ROOT
from tests.test_four_devices import difference

# Nothing may blow a rounding up in these runs. On plain areas, which drawings have, it decides
# which pixel of each pooling gets the gradient, for a whole area alike; noise has none. And the
# recipe's optimizer divides a weight's gradient by its own size, so that it takes a step from
# what is only the rounding of a gradient near 0; with this epsilon it is gradient descent.
# 72 images less 32 held out, in batches of 8: 5 steps an epoch, 20 in all.
ARGUMENTS = (
    "--config=tests/tiny_config.py", "--config.num_epochs=4", "--config.data.valid_examples=21",
    "--config.optimizer.epsilon=1", "--config.optimizer.learning_rate=0.001",
    "--config.model.dropout_rate=0.3", "--notensorboard",
)  # fmt: skip


@pytest.fixture(scope="module")
def noise_folder(tmp_path_factory):
    """72 images of noise as large as they are used, in Kaggle's layout."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    for i in range(72):
        shape = (18, 20, 3) if i % 4 < 2 else (22, 18, 3)
        pixels = rng.integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(folder / f"{('cat', 'dog')[i % 2]}.{i}.png")
    return folder


def devices(count):
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}


def assert_same_run(left, right):
    """Whole runs: the order, windows, dropout, statistics and evaluations of 20 steps.

    The state to a hundredth of each array's largest value, which is what a single ReLU may
    make of a rounding next to 0; another order or mask makes far more. What a step computes
    is compared more closely in tests/test_four_devices.py.
    """
    states = [load(str(path), "latest").state for path in (left, right)]
    assert int(states[0].step) == int(states[1].step) == 20
    assert difference(*states) < 1e-2
    metrics = [
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (left, right)
    ]
    assert len(metrics[0]) == len(metrics[1]) == 4
    for one, other in zip(*metrics, strict=True):
        for name in ("train/error_rate", "valid/error_rate"):
            assert one[name] == pytest.approx(other[name], abs=1e-6)
        for name in ("train/loss", "valid/loss", "train/gradient_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-3)
        # The lens: errors of the compared images, and what it says of each layer.
        for name in one.keys() - {"seconds", "train/images_per_second"}:
            within = {"abs": 1e-6} if "error_rate" in name else {"rel": 2e-3, "abs": 1e-4}
            assert one[name] == pytest.approx(other[name], **within), name


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["mean_only", "full", "none"])
def test_four_devices_equal_one(norm, run_command, noise_folder, tmp_path):
    for count in (1, 4):
        run_command(
            "main", *ARGUMENTS, f"--config.data.source={noise_folder}",
            f"--config.model.norm={norm}", f"--workdir={tmp_path / str(count)}", **devices(count),
        )  # fmt: skip
    result = json.loads((tmp_path / "4" / "result.json").read_text())
    assert result["hardware"]["num_devices"] == 4
    assert_same_run(tmp_path / "1", tmp_path / "4")


@pytest.mark.slow
def test_per_device_statistics_are_another_experiment(run_command, noise_folder, tmp_path):
    for name, per_device in (("whole", "false"), ("each", "true")):
        run_command(
            "main", *ARGUMENTS, f"--config.data.source={noise_folder}",
            f"--config.model.per_device_stats={per_device}", "--config.num_epochs=1",
            "--config.optimizer.epsilon=1e-5", "--config.optimizer.learning_rate=3e-4",
            f"--workdir={tmp_path / name}", **devices(4),
        )  # fmt: skip
    states = [load(str(tmp_path / name)).state for name in ("whole", "each")]
    assert difference(*states) > 0.1
    kernels = [state.params["block1"]["conv"]["kernel"] for state in states]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


@pytest.mark.slow
def test_two_processes_equal_one(run_command, noise_folder, cache_folder, tmp_path):
    arguments = (*ARGUMENTS, f"--config.data.source={noise_folder}")
    run_command("main", *arguments, f"--workdir={tmp_path / 'one'}", **devices(1))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [
                sys.executable, "-m", "bn_vgg.main", *arguments, f"--workdir={tmp_path / 'two'}",
                f"--coordinator_address={address}", "--num_processes=2", f"--process_id={i}",
            ],
            cwd=ROOT,
            env=os.environ | {"BN_VGG_CACHE": str(cache_folder)} | devices(2),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    # Only the first speaks.
    assert "epoch   4/4" in outputs[0]
    assert "epoch" not in outputs[1]
    hardware = json.loads((tmp_path / "two" / "result.json").read_text())["hardware"]
    assert (hardware["num_devices"], hardware["num_hosts"]) == (4, 2)
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_a_batch_that_devices_cannot_share_names_sizes_that_fit(
    run_command, noise_folder, tmp_path
):
    failed = run_command(
        "main", *ARGUMENTS, f"--config.data.source={noise_folder}", f"--workdir={tmp_path}",
        status=2, **devices(3),
    )  # fmt: skip
    assert failed.stderr.strip().splitlines()[-1] == (
        "error: config.batch_size: 3 devices cannot share 8 examples equally; sizes that fit: 6, 9"
    )


def test_sizes_that_fit():
    check_batch_size(100, 4)
    with pytest.raises(UserError, match="sizes that fit: 96, 104"):
        check_batch_size(100, 8)
    with pytest.raises(UserError, match=r"sizes that fit: 8$"):
        check_batch_size(5, 8)
    assert [round_up(size, 4) for size in (1, 4, 5)] == [4, 4, 8]
