"""Every field of a run, its unit and why: the published recipe, without normalization.

The nine cells of the grid build on this file and hold only their difference; percentages in them
are the post's validation accuracies, not results of this code. Each takes a variant after a colon,
`configs/meanonly_crop.py:small`:

  full   the published size, 128x128 crops (the default);
  small  the same experiment at 48x48, for a machine with only a CPU;
  demo   minutes on two CPU cores, on drawings that come with the code.
"""

from ml_collections import ConfigDict

# Side of the shorter edge in pixels: (without, with random cropping). The post scales
# to 150 and cuts 128; the others come near that proportion.
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
        raise ValueError(f"unknown variant {variant!r}; there are: {', '.join(_MIN_SIDE)}")
    config = ConfigDict()
    # Of the working directory, and in TensorBoard.
    config.name = cell if variant == "full" else f"{cell}-{variant}"
    config.variant = variant

    # Initialization, order, crops and dropout. The split does not depend on it.
    config.seed = 0
    # The post's figures show 45 to 73.
    config.num_epochs = 60
    # Examples of one update, over all devices. The batch's statistics are taken over it.
    config.batch_size = 100

    config.data = data = ConfigDict()
    # A TFDS name; `hf:` and a Hugging Face name; a path or glob to zip files or folders (several
    # with commas); `cartoons`.
    data.source = "cats_vs_dogs"
    # Every image is scaled to this shorter side, in pixels, before crops are cut. With
    # random cropping it is larger than a crop, which can then move both ways.
    data.min_side = _MIN_SIDE[variant][crop]
    # Side of the network's input, in pixels.
    data.crop_size = _MIN_SIDE[variant][0]
    # Where decoded images live and crops are cut: on the `device`, on the `host`, or
    # `auto`: on the device where they fit. Changes only the speed.
    data.placement = "auto"
    # Examples held out, unless the source brings splits of its own.
    data.valid_examples = 2500
    data.test_examples = 2500

    config.init = ConfigDict()
    # An .npz file of `python -m bn_vgg.export`, of the same network and classes: start from its
    # weights instead of the seed's.
    config.init.weights = ""
    # Start from its running statistics, too.
    config.init.statistics = True

    # In training alone; each example draws anew in each epoch. All are off in the recipe.
    config.augment = augment = ConfigDict()
    # Mirror each image from left to right, with probability 1/2.
    augment.horizontal_flip = False
    # Scale brightness, contrast and saturation by factors from 1 - x to 1 + x.
    augment.colour_jitter = 0.0
    # Side of a square to grey out, in pixels.
    augment.cutout = 0
    # Mix images and labels of two examples, with a share drawn from Beta(mixup, mixup).
    augment.mixup = 0.0
    # Share of each label that is spread over all classes.
    augment.label_smoothing = 0.0

    config.model = model = ConfigDict()
    # A name in bn_vgg/models/__init__.py (`vgg8`, `resnet`), or your own: `package.module:Class`.
    model.name = "vgg8"
    # What the network itself takes, such as {'depth': 20}; its docstring explains it.
    model.kwargs = ConfigDict()
    # A name in bn_vgg/models/norms.py, or your own: `package.module:ClassName`.
    model.norm = norm
    # What the normalizer itself takes, such as {'num_groups': 5}; its docstring explains it.
    model.norm_kwargs = ConfigDict()
    # Weight of the old value in the running statistics: a time constant of 200 batches.
    model.norm_decay = 0.995
    # Added to the variance before its square root.
    model.norm_epsilon = 1e-4
    # What the second running statistic averages: `stdev`, as the post, or `variance`.
    model.stats_average = "stdev"
    # With dropout, which pass gives running statistics: `clean`, as the post, a second one over the
    # batch, without dropout; `dropout`, the loss's own.
    model.stats_pass = "clean"
    # Statistics of each device's own share of the batch instead of the whole batch's.
    model.per_device_stats = False
    # Of `vgg8`: feature maps of the convolutions; 2x2 max pooling after every second one.
    model.features = (20, 20, 50, 50, 50, 50, 50, 50)
    model.hidden_units = 500
    model.num_classes = 2
    # Of `vgg8`: `full` pads by 2, so that a layer grows its input by 2; `same` keeps its size.
    model.padding = "full"
    # Probability of dropping a ReLU's output. The post does not record its rate; 0.5 is usual.
    model.dropout_rate = 0.5 if dropout else 0.0
    # Of the computation, `float32` or `bfloat16`; parameters, statistics and the loss are always
    # float32.
    model.dtype = "float32"
    # Of float32 products: `highest` is float32 without TF32 or bfloat16 rounding, on every device;
    # `tensorfloat32`, what PyTorch uses for convolutions, is for NVIDIA GPUs alone. With a `dtype`
    # of `bfloat16` JAX's own default is left, also for products in an optimizer or normalizer.
    model.precision = "highest"

    config.optimizer = optimizer = ConfigDict()
    # A name in bn_vgg/optimizer.py, or any function that returns an Optax transformation:
    # `optax:lion`, `package.module:function`. It is called with the rate and `kwargs`.
    optimizer.name = "rmsprop"
    optimizer.learning_rate = 3e-4
    optimizer.kwargs = ConfigDict()
    # Of `rmsprop` alone: step = learning_rate * g / max(sqrt(ms), epsilon),
    #                     ms = decay * ms + (1 - decay) * g**2, from 0.
    optimizer.decay = 0.999
    optimizer.epsilon = 1e-5
    # Divide ms by 1 - decay**t at update t. The post does not, so that its first updates are up
    # to 31.6 times the nominal size; at 128x128 some seeds then learn nothing at first.
    optimizer.bias_correction = False
    # Each update subtracts learning_rate * weight_decay * kernel (with `lamb` scaled as its step);
    # biases and scales are left alone.
    optimizer.weight_decay = 0.0
    # The largest norm of all gradients together; larger ones are scaled down. 0: no limit.
    optimizer.clip_norm = 0.0
    # Weight of the old value in an exponential moving average of the weights, at update t at most
    # (1 + t) / (10 + t). The average, with precise statistics of its own, is then what is
    # evaluated, predicted with and exported. 0: no average.
    optimizer.average_decay = 0.0

    # Of the learning rate, per update: `constant`, `cosine`, `linear`, `one_cycle` or `step`.
    config.schedule = ConfigDict()
    config.schedule.name = "constant"
    # Of a linear increase from 0 beforehand, in epochs.
    config.schedule.warmup_epochs = 0.0
    # What the schedule takes, such as {'final': 0.1}: see bn_vgg/optimizer.py.
    config.schedule.kwargs = ConfigDict()

    config.eval = ConfigDict()
    # Examples of one evaluation step, over all devices. Changes only the speed.
    config.eval.batch_size = 100
    # Evaluate the mirror images of the five crops, too.
    config.eval.flips = False
    # Statistics that are evaluated, predicted with and exported: the `running` averages, as the
    # post's, or `precise` ones, recomputed at the end of each epoch. An average of the weights
    # always has precise ones.
    config.eval.statistics = "running"
    # Training images over which statistics are recomputed with each epoch's weights, to see
    # how far the running ones lag, and for `precise` evaluation; 0: not at all. Changes nothing in
    # training.
    config.eval.precise_examples = 1000
    # Validation images, central crops alone, whose error is taken three times: by running,
    # by precise and by their own batch's statistics.
    config.eval.compared_examples = 1000

    config.checkpoint = ConfigDict()
    # Updates between checkpoints within an epoch, rounded up to the end of a chunk (ten steps at
    # most); 0: only at its end, and when the run is asked to stop. Changes nothing in training.
    config.checkpoint.every_steps = 0

    config.debug = ConfigDict()
    # Where a number is not finite, take that step again with `jax.debug_nans`, which names the
    # operation that makes a NaN. Costs nothing before.
    config.debug.nans = False

    # What a run of a sweep asks of a Ray cluster; fractions share a GPU. Changes only the speed.
    config.resources = ConfigDict({"CPU": 1.0, "GPU": 0.0, "TPU": 0.0})

    if variant == "demo":
        _make_demo(config)
    return config


def _make_demo(config: ConfigDict) -> None:
    """Shrinks the run to minutes; where that needs another value, says why."""
    config.data.source = "cartoons"
    config.data.valid_examples = 500
    config.data.test_examples = 500
    config.num_epochs = 10
    # 60 batches an epoch, not 200, so time constants shrink with the run: over 200 batches
    # the running statistics would lag by three epochs, and the published RMSProp spends its first
    # few hundred steps recovering from ones up to 31.6 times nominal.
    config.batch_size = 50
    config.model.norm_decay = 0.9
    config.optimizer.decay = 0.9
