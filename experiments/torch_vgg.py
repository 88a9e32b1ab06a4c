"""The same network in PyTorch, for exported weights, and its training step, for the benchmark.

Layers, batch, dtype and precision are the same; so is RMSProp, but that PyTorch adds epsilon to the
root. The layout is channels_last, PyTorch's fastest. Needs only PyTorch and NumPy.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

# The supported values of config.model.norm.
NORMS = ("none", "mean_only", "full")


class MeanOnlyBatchNorm(nn.Module):
    """y = x - mean(x) + bias; see bn_vgg.models.batch_norm.MeanOnlyBatchNorm."""

    def __init__(self, channels: int, decay: float):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.decay = decay

    def forward(self, x_NCHW):
        """Normalizes by the batch's mean, in evaluation by the running mean."""
        mean = self.running_mean
        if self.training:
            mean = x_NCHW.float().mean((0, 2, 3))
            self.running_mean.mul_(self.decay).add_(mean.detach(), alpha=1 - self.decay)
        return x_NCHW + (self.bias - mean).to(x_NCHW.dtype)[:, None, None]


def make_network(model: dict, crop_size: int) -> nn.Module:
    """Builds the network of `config.model` for crops of `crop_size` pixels.

    It loads weights of `python -m bn_vgg.export --layout=torch`, and takes images (N, C, H, W), RGB
    from 0 to 1.
    """
    norms: dict[str, Callable[[int], nn.Module]] = {
        "none": lambda channels: nn.Identity(),
        "mean_only": lambda channels: MeanOnlyBatchNorm(channels, model["norm_decay"]),
        "full": lambda channels: nn.BatchNorm2d(
            channels, eps=model["norm_epsilon"], momentum=1 - model["norm_decay"]
        ),
    }
    padding = {"full": 2, "same": 1}[model["padding"]]
    network = nn.Sequential()
    channels, side = 3, crop_size
    for i, features in enumerate(model["features"]):
        bias = model["norm"] == "none"
        block = nn.Sequential()
        network.add_module(f"block{i}", block)
        block.conv = nn.Conv2d(channels, features, 3, padding=padding, bias=bias)
        block.norm = norms[model["norm"]](features)
        block.extend([nn.ReLU(), nn.Dropout(model["dropout_rate"])])
        channels, side = features, side + 2 * padding - 2
        if i % 2 == 1:
            block.append(nn.MaxPool2d(2))
            side //= 2
    network.flatten = nn.Flatten()
    network.hidden = nn.Linear(channels * side * side, model["hidden_units"])
    network.relu, network.dropout = nn.ReLU(), nn.Dropout(model["dropout_rate"])
    network.output = nn.Linear(model["hidden_units"], model["num_classes"])
    return network


def make_steps(
    model: dict, optimizer: dict, images_NHWC: np.ndarray, labels_N: np.ndarray, count: int
) -> Callable[[], None]:
    """Returns a function that does `count` updates and waits for them.

    On a CPU it is eager; on a GPU it is a CUDA graph of the compiled step, PyTorch's fastest form.
    Images are already on the device as uint8, as they are in JAX.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu, dtype = device.type == "cuda", getattr(torch, model["dtype"])
    torch.backends.cudnn.benchmark = True
    precision = "tf32" if model["precision"] == "tensorfloat32" else "ieee"
    torch.backends.cudnn.conv.fp32_precision = precision
    torch.backends.cuda.matmul.fp32_precision = precision
    network = make_network(model, images_NHWC.shape[1]).to(device)
    network = network.to(memory_format=torch.channels_last)
    rmsprop = torch.optim.RMSprop(
        network.parameters(),
        lr=optimizer["learning_rate"],
        alpha=optimizer["decay"],
        eps=optimizer["epsilon"],
        capturable=on_gpu,  # for a CUDA graph
        foreach=on_gpu,
    )
    images = torch.from_numpy(images_NHWC).to(device).permute(0, 3, 1, 2)
    labels = torch.from_numpy(labels_N).to(device).long()

    def loss() -> torch.Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = network(images.float() / 255)
        return functional.cross_entropy(logits.float(), labels)

    compiled = torch.compile(loss) if on_gpu else loss

    def step() -> None:
        rmsprop.zero_grad(set_to_none=True)
        compiled().backward()
        rmsprop.step()

    take = _capture(step, rmsprop) if on_gpu else step

    def steps() -> None:
        for _ in range(count):
            take()
        if on_gpu:
            torch.cuda.synchronize()

    return steps


def _capture(step: Callable[[], None], rmsprop: torch.optim.Optimizer) -> Callable[[], None]:
    """Captures a step as a CUDA graph, after a few warm-up steps on another stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(5):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    rmsprop.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        step()
    return graph.replay
