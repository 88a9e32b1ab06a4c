"""Exported weights: as files of either kind, and as what another run starts from."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bn_vgg.errors import UserError
from bn_vgg.weights import load_weights, named_arrays, torch_state_dict
from configs import default
from tests.conftest import ROOT
from tests.runs import run, same, state
from tests.test_steps import SIDE, apply, build, train_batch

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def exported(tmp_path):
    _, _, other = build("full")
    arrays = {name: x + 1 for name, x in named_arrays(other.variables).items()}
    np.savez(tmp_path / "weights.npz", **arrays)
    return tmp_path / "weights.npz", arrays


@pytest.mark.parametrize("statistics", [True, False])
def test_weights_and_by_choice_statistics_are_replaced(exported, statistics):
    path, arrays = exported
    _, _, fresh = build("full")
    found = named_arrays(load_weights(fresh, str(path), statistics=statistics).variables)
    for name, x in named_arrays(fresh.variables).items():
        taken = statistics or name.startswith("params/")
        np.testing.assert_array_equal(found[name], arrays[name] if taken else x)


def test_what_does_not_fit_is_named(exported, tmp_path):
    path, _ = exported
    _, _, other = build("full", hidden_units=9)
    message = r"in .*weights.npz params/hidden/bias is \(8,\), not \(9,\); params/hidden/kernel is"
    with pytest.raises(UserError, match=message):
        load_weights(other, str(path), statistics=True)
    _, _, other = build("none")
    with pytest.raises(UserError, match=r"params/block0/conv/bias is missing, not \(4,\)"):
        load_weights(other, str(path), statistics=False)
    (tmp_path / "torn.npz").write_bytes(path.read_bytes()[:500])
    for name in ("torn.npz", "missing.npz"):
        with pytest.raises(UserError, match=f"init.weights: cannot read .*{name}: "):
            load_weights(other, f"{tmp_path}/{name}", statistics=True)


def test_a_run_starts_from_another(trained_run, fork_command, tiny_config, cache_folder, tmp_path):
    """With a learning rate next to nothing it ends with the weights that it began with."""
    outputs = [["w.npz"], ["w.safetensors"], ["torch.safetensors", "--layout=torch"]]
    for name, *more in outputs:
        fork_command("export", f"--workdir={trained_run}", f"--output={tmp_path}/{name}", *more)
    with np.load(tmp_path / "w.npz") as file:
        arrays = dict(file)
    same(load_file(tmp_path / "w.safetensors"), arrays)
    converted = torch_state_dict(arrays, tiny_config.model.to_dict())
    same(load_file(tmp_path / "torch.safetensors"), converted)
    layouts = [json.loads((tmp_path / f"{x}.json").read_text())["layout"] for x in ("w", "torch")]
    assert layouts == [
        "convolutions (height, width, in, out), dense layers (in, out)",
        "convolutions (out, in, height, width), dense layers (out, in)",
    ]
    tiny_config.init.weights, tiny_config.num_epochs = f"{tmp_path}/w.npz", 1
    tiny_config.optimizer.learning_rate, tiny_config.optimizer.average_decay = 1e-30, 0.9
    run(tiny_config, tmp_path / "run", cache_folder)
    (tmp_path / "w.npz").unlink()  # what goes on does not need it
    tiny_config.num_epochs = 2
    run(tiny_config, tmp_path / "run", cache_folder)
    after = state(tmp_path / "run")
    weights, average = named_arrays(after.variables), named_arrays(after.eval_variables)
    for name in arrays:
        if name.startswith("params/"):
            np.testing.assert_array_equal(weights[name], arrays[name])
            np.testing.assert_allclose(average[name], arrays[name], rtol=1e-6)


@pytest.fixture(scope="module", params=[("none", "full"), ("mean_only", "full"), ("full", "same")])
def for_torch(request):
    """Settings of a network with arbitrary weights, its state_dict, images, logits."""
    norm, padding = request.param
    settings = default.get_config().model.to_dict() | {
        "norm": norm, "padding": padding, "features": (4, 6), "hidden_units": 8,
    }  # fmt: skip
    model, _, state = build(norm, padding=padding)
    rng = np.random.default_rng(0)
    params, batch_stats = jax.tree.map(
        lambda x: x + rng.uniform(0.1, 0.5, x.shape).astype(np.float32),
        (state.params, state.batch_stats),
    )
    state = state.replace(params=params, batch_stats=batch_stats)
    images = train_batch()["crops"][:, 0]
    images_NCHW = np.moveaxis(images, -1, 1).astype(np.float32) / 255
    arrays = torch_state_dict(named_arrays(state.variables), settings)
    return settings, arrays, images_NCHW, np.asarray(apply(model, state, images))


def test_a_state_dict_gives_the_same_logits(for_torch):
    """As PyTorch's layers are defined, in NumPy."""
    settings, arrays, x, logits = for_torch
    rest, epsilon, width = dict(arrays), settings["norm_epsilon"], settings["padding"] == "full"
    for i in range(2):

        def of_channels(name, missing, block=f"block{i}"):
            return rest.pop(f"{block}.{name}", np.float32([missing]))[:, None, None]

        x = np.pad(x, ((0, 0), (0, 0), *[(1 + width, 1 + width)] * 2))
        squares = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
        x = np.einsum("nihwyx,oiyx->nohw", squares, rest.pop(f"block{i}.conv.weight"))
        x = x + of_channels("conv.bias", 0) - of_channels("norm.running_mean", 0)
        x = x / np.sqrt(of_channels("norm.running_var", 1 - epsilon) + epsilon)
        x = x * of_channels("norm.weight", 1) + of_channels("norm.bias", 0)
        x = np.maximum(x, 0)
    count, channels, height, width = x.shape
    x = x.reshape(count, channels, height // 2, 2, width // 2, 2).max((3, 5)).reshape(count, -1)
    x = np.maximum(x @ rest.pop("hidden.weight").T + rest.pop("hidden.bias"), 0)
    x = x @ rest.pop("output.weight").T + rest.pop("output.bias")
    assert rest == {}
    np.testing.assert_allclose(x, logits, rtol=1e-4)


def test_pytorch_loads_a_state_dict_as_printed(for_torch, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    settings, arrays, images, logits = for_torch
    monkeypatch.chdir(tmp_path)
    save_file(arrays, "weights.safetensors")
    config = {"model": settings, "data": {"crop_size": SIDE}}
    (tmp_path / "weights.json").write_text(json.dumps({"config": config}))
    page = (ROOT / "bn_vgg" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(import json\n.*?)```", page, re.DOTALL)
    names = {"images": torch.from_numpy(images)}
    exec(code, names)
    np.testing.assert_allclose(names["logits"].detach().numpy(), logits, rtol=1e-4)
