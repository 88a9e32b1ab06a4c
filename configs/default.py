"""All fields of a configuration, with units and reasons: the published recipe.

The nine cells build on this file and hold only their differences. Percentages in them are the
post's validation accuracies, not results of this code. Each takes a variant after a colon,
`configs/meanonly_crop.py:small`:

  full   the published size, 128x128 crops (the default);
  small  the same experiment at 48x48, for a machine with only a CPU;
  demo   drawings that come with the code, minutes on two CPU cores.
"""

from ml_collections import ConfigDict

# Length of the shorter side in pixels: (without, with random cropping). The post scales to 150 and
# crops 128; the other variants have about the same proportion.
_MIN_SIDE = {"full": (128, 150), "small": (48, 56), "demo": (32, 36)}


def get_config(
    variant: str = "full",
    cell: str = "baseline",
    *,
    norm: str = "none",
    crop: bool = False,
    dropout: bool = False,
) -> ConfigDict:
    """Returns the configuration of a cell of the grid, by default of `baseline`."""
    if variant not in _MIN_SIDE:
        raise ValueError(f"unknown variant {variant!r}; choose one of {', '.join(_MIN_SIDE)}")
    config = ConfigDict()
    # Names the working directory and the run in TensorBoard.
    config.name = cell if variant == "full" else f"{cell}-{variant}"
    config.variant = variant

    # Seed of initialization, order, crops, augmentation and dropout, but not of the data split.
    config.seed = 0
    # The post's figures show 45 to 73.
    config.num_epochs = 60
    # Examples per update, over all devices. Batch statistics are computed over them.
    config.batch_size = 100

    config.data = data = ConfigDict()
    # A TFDS name; `hf:` and a Hugging Face name; a path or glob to zip files or folders (several
    # with commas); `cartoons`.
    data.source = "cats_vs_dogs"
    # Each image's shorter side is scaled to this, in pixels, before crops are cut. With random
    # cropping it is larger than the crop.
    data.min_side = _MIN_SIDE[variant][crop]
    # Side of the network's input, in pixels.
    data.crop_size = _MIN_SIDE[variant][0]
    # Where decoded images are kept and crops are cut: `host`, or `auto`, which is the device unless
    # they do not fit there or it is a TPU. Changes only the speed.
    data.placement = "auto"
    # Examples to hold out, unless the source has its own splits.
    data.valid_examples = 2500
    data.test_examples = 2500

    config.init = ConfigDict()
    # An .npz file of `python -m bn_vgg.export`, of the same network and classes: start from its
    # weights instead of random ones.
    config.init.weights = ""
    # Start from its running statistics, too.
    config.init.statistics = True

    # Only in training, drawn for each example in each epoch. All are off in the recipe.
    config.augment = augment = ConfigDict()
    # Mirror each image from left to right, with probability 1/2.
    augment.horizontal_flip = False
    # Scale brightness, contrast and saturation by random factors in [1 - value, 1 + value].
    augment.colour_jitter = 0.0
    # Grey out a square with sides of this length, in pixels.
    augment.cutout = 0
    # Mix images and labels of two examples, with weights drawn from Beta(mixup, mixup).
    augment.mixup = 0.0
    # Fraction of each label that is spread over all classes.
    augment.label_smoothing = 0.0

    config.model = model = ConfigDict()
    # A name in bn_vgg/models/__init__.py (`vgg8`, `resnet`), or your own: `package.module:Class`.
    model.name = "vgg8"
    # Fields of the network itself, such as {'depth': 20}; its docstring explains them.
    model.kwargs = ConfigDict()
    # A name in bn_vgg/models/norms.py, or your own: `package.module:ClassName`.
    model.norm = norm
    # Fields of the normalizer itself, such as {'num_groups': 5}; its docstring explains them.
    model.norm_kwargs = ConfigDict()
    # Weight of the old value in the running statistics; 0.995 is a time constant of 200 batches.
    model.norm_decay = 0.995
    # Added to the variance before its square root.
    model.norm_epsilon = 1e-4
    # What is averaged besides the mean: the standard deviation (`stdev`), as in the post, or the
    # `variance`.
    model.stats_average = "stdev"
    # With dropout, which pass updates the running statistics: `clean`, a second one without
    # dropout, as in the post, or `dropout`, the one that computes the loss.
    model.stats_pass = "clean"
    # Use statistics of each device's share of the batch instead of the whole batch's.
    model.per_device_stats = False
    model.num_classes = 2
    # Only `vgg8`: feature maps of the convolutions (2x2 max pooling follows every second one), and
    # units of the hidden layer.
    model.features = (20, 20, 50, 50, 50, 50, 50, 50)
    model.hidden_units = 500
    # Only `vgg8`: `full` pads by 2, so that height and width grow by 2; `same` keeps them.
    model.padding = "full"
    # Probability of dropping a ReLU's output. The post does not state its rate; 0.5 is usual.
    model.dropout_rate = 0.5 if dropout else 0.0
    # Of activations and products: `float32` or `bfloat16`. Parameters, statistics and the loss are
    # always float32.
    model.dtype = "float32"
    # Of float32 products: `highest` is float32 without TF32 or bfloat16 rounding on any device;
    # `tensorfloat32`, PyTorch's default for convolutions, is only for NVIDIA GPUs. With `dtype`
    # `bfloat16` JAX's default is used, also in optimizers and normalizers.
    model.precision = "highest"

    config.optimizer = optimizer = ConfigDict()
    # A name in bn_vgg/optimizer.py, or any function that returns an Optax transformation,
    # `optax:lion` or `package.module:function`. It is called with the learning rate, `kwargs` and,
    # if it takes both, `weight_decay` and `mask`, which selects the kernels.
    optimizer.name = "rmsprop"
    optimizer.learning_rate = 3e-4
    optimizer.kwargs = ConfigDict()
    # Only `rmsprop`: step = learning_rate * g / max(sqrt(ms), epsilon),
    #                 ms = decay * ms + (1 - decay) * g**2, starting from 0.
    optimizer.decay = 0.999
    optimizer.epsilon = 1e-5
    # Divide ms by 1 - decay**t at update t. The post does not, so its first updates are up to 31.6
    # times the nominal size, and at 128x128 some seeds learn nothing at first.
    optimizer.bias_correction = False
    # Each update subtracts learning_rate * weight_decay * kernel (`lamb` rescales it, too).
    # Parameters with one number for each channel, such as biases and scales, do not decay.
    optimizer.weight_decay = 0.0
    # Maximum global norm of the gradients; larger ones are scaled down. 0: no clipping.
    optimizer.clip_norm = 0.0
    # Weight of the old value in an exponential moving average of the weights, at most
    # (1 + t) / (10 + t) at update t, counted from 0. Evaluation, prediction and export then use the
    # average, with its own precise statistics. 0: no average.
    optimizer.average_decay = 0.0

    # The learning rate of each update: `constant`, `cosine`, `linear`, `one_cycle`, `step`, or your
    # own `package.module:function`.
    config.schedule = ConfigDict()
    config.schedule.name = "constant"
    # Length of a linear increase from 0 before the schedule, in epochs.
    config.schedule.warmup_epochs = 0.0
    # Arguments of the schedule, such as {'final': 0.1}; see bn_vgg/optimizer.py.
    config.schedule.kwargs = ConfigDict()

    config.eval = ConfigDict()
    # Examples of one evaluation step, over all devices. Changes only the speed.
    config.eval.batch_size = 100
    # Evaluate the mirror images of the five crops, too.
    config.eval.flips = False
    # Statistics for evaluation, prediction and export: the `running` averages, as in the post, or
    # `precise` ones, recomputed at the end of each epoch. An average of the weights always uses
    # precise ones.
    config.eval.statistics = "running"
    # Training images for precise statistics, rounded up to whole batches. They show how far the
    # running ones lag. 0: neither these nor the comparison below. Does not affect training.
    config.eval.precise_examples = 1000
    # Validation images whose central crops are evaluated with running, precise and batch
    # statistics, if the normalizers keep running averages.
    config.eval.compared_examples = 1000

    config.checkpoint = ConfigDict()
    # Updates between checkpoints within an epoch, rounded up to the end of a chunk (ten steps at
    # most); 0: only at the end of epochs and when the run is stopped. Does not affect training.
    config.checkpoint.every_steps = 0

    config.debug = ConfigDict()
    # If a number is not finite, repeat that step with `jax.debug_nans`, which names the operation
    # that makes a NaN. Has no cost otherwise.
    config.debug.nans = False

    # Resources of a run on a Ray cluster; fractions share a GPU. Changes only the speed.
    config.resources = ConfigDict({"CPU": 1.0, "GPU": 0.0, "TPU": 0.0})

    if variant == "demo":
        _make_demo(config)
    return config


def _make_demo(config: ConfigDict) -> None:
    """Shrinks the run to minutes on a CPU."""
    config.data.source = "cartoons"
    config.data.valid_examples = 500
    config.data.test_examples = 500
    config.num_epochs = 10
    # An epoch has 60 batches instead of 200, so time constants are shorter, too: over 200 batches
    # the running statistics would lag by three epochs, and the published RMSProp would take a few
    # hundred steps to recover from its first updates.
    config.batch_size = 50
    config.model.norm_decay = 0.9
    config.optimizer.decay = 0.9
