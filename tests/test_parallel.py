"""Several devices and several processes compute what one computes."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from bn_vgg.errors import UserError
from bn_vgg.parallel import check_batch_size, round_up
from bn_vgg.trained import load
from tests.conftest import ROOT

# 72 images less 32 held out, in batches of 8: 5 steps an epoch, 20 in all.
ARGUMENTS = (
    "--config=tests/tiny_config.py", "--config.num_epochs=4", "--config.data.valid_examples=21",
    "--config.model.dropout_rate=0.3", "--notensorboard",
)  # fmt: skip


def devices(count):
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}


def assert_same_run(left, right):
    """Parameters, statistics and accumulators to 1e-4 of each array's largest value."""
    states = [load(str(path), "latest").state for path in (left, right)]
    assert int(states[0].step) == int(states[1].step) == 20

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(a).max())

    jax.tree.map(close, *states)
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


@pytest.mark.parametrize("norm", ["mean_only", "full", "none"])
def test_four_devices_equal_one(norm, run_command, cartoon_folder, tmp_path):
    for count in (1, 4):
        run_command(
            "main", *ARGUMENTS, f"--config.data.source={cartoon_folder}",
            f"--config.model.norm={norm}", f"--workdir={tmp_path / str(count)}", **devices(count),
        )  # fmt: skip
    result = json.loads((tmp_path / "4" / "result.json").read_text())
    assert result["hardware"]["num_devices"] == 4
    assert_same_run(tmp_path / "1", tmp_path / "4")


def test_per_device_statistics_are_another_experiment(run_command, cartoon_folder, tmp_path):
    for name, per_device in (("whole", "false"), ("each", "true")):
        run_command(
            "main", *ARGUMENTS, f"--config.data.source={cartoon_folder}",
            f"--config.model.per_device_stats={per_device}", "--config.num_epochs=1",
            f"--workdir={tmp_path / name}", **devices(4),
        )  # fmt: skip
    states = [load(str(tmp_path / name)).state for name in ("whole", "each")]
    kernels = [state.params["block1"]["conv"]["kernel"] for state in states]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


def test_two_processes_equal_one(run_command, cartoon_folder, cache_folder, tmp_path):
    arguments = (*ARGUMENTS, f"--config.data.source={cartoon_folder}")
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
    run_command, cartoon_folder, tmp_path
):
    failed = run_command(
        "main", *ARGUMENTS, f"--config.data.source={cartoon_folder}", f"--workdir={tmp_path}",
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
