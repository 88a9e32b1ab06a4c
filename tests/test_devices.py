"""However it is computed, a run has the same numbers: chunks, placements, devices."""

import jax
import jax.numpy as jnp
import pytest

from bn_vgg import launch
from bn_vgg.data import pipeline
from bn_vgg.devices import Devices
from bn_vgg.errors import UserError
from bn_vgg.loop import epoch_key, init_key
from bn_vgg.programs import Programs
from tests.runs import same
from tests.xla_flags import QUICK


def devices(count):
    return {"XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count={count}"}


def test_lengths_of_chunks_and_placements_change_no_bit(tiny_config, cache_folder, monkeypatch):
    """One chunk of five steps, cut on the device, against five of one step, cut on the host."""
    monkeypatch.setattr(pipeline, "_MAX_STEPS", 5)
    tiny_config.batch_size, tiny_config.model.norm = 4, "full"
    tiny_config.data.valid_examples, tiny_config.model.dropout_rate = 17, 0.3
    tiny_config.model.stats_pass = "dropout"  # which is one pass fewer to compile
    one, found = Devices(), []
    programs = Programs(tiny_config.to_dict(), one, 11)
    state = programs.init(init_key(0), jnp.zeros((1, 16, 16, 3)))
    for placement in ("auto", "host"):
        tiny_config.data.placement = placement
        data, _ = launch.load_data(tiny_config, cache_folder, one, quiet=True)
        chunk = next(data.train(0))
        assert (chunk.num_steps, data.on_host) == (5, placement == "host")
        steps = [chunk.step(i, one) for i in range(5)] if placement == "host" else [chunk]
        carry = one.replicate((state, programs.empty_training))
        for each in steps:
            carry = programs.train_chunk(carry, epoch_key(0, 0), each.batches, each.pixels)
        found.append(jax.device_get(carry))
    assert found[0][0].step == 5
    same(*found)


def test_shares_of_a_batch():
    four = Devices()
    four.count, four.local_count = 8, 4  # of two hosts
    four.check(96, "highest")
    with pytest.raises(UserError) as raised:
        four.check(100, "highest")
    assert str(raised.value) == (
        "config.batch_size: 8 devices cannot share 100 examples equally; set a multiple of 8, or "
        "let JAX see fewer devices"
    )
    with pytest.raises(UserError, match="cannot share 5 examples equally; set a multiple of 8"):
        four.check(5, "highest")
    with pytest.raises(UserError, match="tensorfloat32 is for NVIDIA GPUs, and this is a CPU"):
        four.check(8, "tensorfloat32")
    assert four.host_rows(16) == slice(0, 8)
