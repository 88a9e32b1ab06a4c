"""What XLA makes of a run's programs for a GPU and for TPUs; see tests/compiled.py."""

import json
import os
import shutil

import pytest

from tests.conftest import python

COMPILERS = os.environ.get("BN_VGG_COMPILERS", "")
BFLOAT16 = {"dtype": "bfloat16"}
# Half of the published network's layers, in half of the time.
FEWER = {"features": [20, 20, 50, 50]}

pytestmark = pytest.mark.skipif(
    not COMPILERS,
    reason="BN_VGG_COMPILERS names no folder with XLA's compilers for other devices: .ci/run",
)


def described(device, programs, *models):
    if device == "h100":
        assert shutil.which("ptxas"), "ptxas, of CUDA or nvidia-cuda-nvcc, must be on the PATH"
    arguments = (COMPILERS, device, ",".join(programs), *map(json.dumps, models))
    done = python("-m", "tests.compiled", *arguments, timeout=900)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_gpu_is_given_cudnns_own_gradients_and_channels_in_multiples_of_8():
    models = [
        {"norm": "none"} | BFLOAT16,
        {"norm": "mean_only", "precision": "tensorfloat32"},
        {"norm": "full"} | BFLOAT16,
    ]
    programs = described("h100", ("train",), *(model | FEWER for model in models))
    for model, program in zip(models, programs, strict=True):
        found = program["convolutions"]
        counts = {function: len(calls) for function, calls in found.items()}
        forward = counts.pop("convForward", 0) + counts.pop("convBiasActivationForward", 0)
        assert forward == 4, model
        # The images' own gradient is not needed.
        assert counts == {"convBackwardFilter": 4, "convBackwardInput": 3}, model
        channels = {channel for calls in found.values() for call in calls for channel in call}
        assert channels == {8, 24, 56}, model  # for an image's 3, and for 20 and 50


def test_four_tpu_chips_can_share_a_run():
    for found in described("v5e:2x2", ("train", "evaluate"), {"norm": "full"} | BFLOAT16 | FEWER):
        assert 0.1 < found["gib"] < 1.5


def test_a_tpu_moves_little():
    """By XLA's estimate: 34 MB an image.

    With XLA's own gradients of kernels it is 42, with the gradient of pooling for CPUs and GPUs 37.
    """
    (found,) = described("v5e:1x1", ("train",), {"norm": "mean_only"} | BFLOAT16)
    assert found["mb_moved_per_example"] < 35.5
