"""The images of a run, placed, and the batches that its settings make of them."""

from functools import cached_property, partial

import numpy as np

from bn_vgg.data import batches
from bn_vgg.data.batches import Batches, Images
from bn_vgg.data.prepared import PreparedData
from bn_vgg.feed import Feed, choose_placement
from bn_vgg.parallel import Devices, round_up

_SPLITS = {"train": "training", "valid": "validation", "test": "test"}


class RunData:
    """Feeds of the splits, and what is fed.

    Attributes:
      about: the numbers of images and where they are kept, for a person.
      train, valid: feeds.
      steps_per_epoch: training batches of an epoch.
    """

    def __init__(
        self,
        data: PreparedData,
        devices: Devices,
        *,
        seed: int,
        batch_size: int,
        eval_batch_size: int,
        crop_size: int,
        placement: str,
    ):
        """Places the images.

        Args:
          data: images and splits.
          devices: to place them on.
          seed: of the run.
          batch_size: of training, over all hosts.
          eval_batch_size: likewise; rounded up to what the devices can share.
          crop_size: side of the windows in pixels.
          placement: one of `feed.PLACEMENTS`.

        Raises:
          UserError: the images do not fit where they are wanted.
        """
        self._seed, self._batch_size, self._crop_size = seed, batch_size, crop_size
        self._images = {
            split: Images.of(data.cache, examples)
            for split, examples in data.splits._asdict().items()
        }
        # More would be padding alone.
        most = max(len(images.labels) for images in self._images.values())
        self._eval_batch_size = round_up(min(eval_batch_size, most), devices.count)
        used = [self._images["train"], self._images["valid"]]
        # The test images join them at the end; they may go elsewhere, but nowhere too small.
        everything = [*used, self._images["test"]]
        self._test_on_device = choose_placement(placement, everything)
        on_device = self._test_on_device or choose_placement(placement, used)
        counts = (f"{len(self._images[split].labels)} {name}" for split, name in _SPLITS.items())
        names = data.about["class_names"]
        classes = ", ".join(names) if len(names) <= 5 else f"{len(names)} classes"
        where = "device" if on_device else "host"
        self.about = f"{', '.join(counts)} images ({classes}), kept on the {where}"
        if on_device and not self._test_on_device:
            self.about += ", those for the test on the host"
        self._place = partial(Feed, devices=devices, crop_size=crop_size)
        self.train, self.valid = (self._place(images, on_device=on_device) for images in used)
        self.steps_per_epoch = batches.num_train_batches(len(used[0].labels), batch_size)

    @cached_property
    def test(self) -> Feed:
        """The test split's feed; its images are placed when it is first asked for."""
        return self._place(self._images["test"], on_device=self._test_on_device)

    def train_batches(self, epoch: int) -> Batches:
        """The training batches of `epoch`, counted from 0."""
        return self._train_batches(self.train.images, epoch)

    def _train_batches(self, images: Images, epoch: int) -> Batches:
        return batches.train_batches(
            images, seed=self._seed, epoch=epoch, batch_size=self._batch_size,
            crop_size=self._crop_size,
        )  # fmt: skip

    def first_windows(self) -> np.ndarray:
        """The windows (N, H, W, 3) of the first training batch."""
        images = self._images["train"]
        first = {key: array[0] for key, array in self._train_batches(images, 0).items()}
        return batches.cut_windows(
            images.pixels, first["first_SNW"], first["stride_SN"], self._crop_size
        )[:, 0]

    def eval_batches(self, feed: Feed, num_compared: int) -> Batches:
        """The batches that evaluate a split, see `batches.eval_batches`."""
        return batches.eval_batches(
            feed.images, batch_size=self._eval_batch_size, crop_size=self._crop_size,
            num_compared=num_compared,
        )  # fmt: skip

    def compared_batches(self, num_compared: int) -> Batches:
        """The centre windows of the first validation images, in batches as in training."""
        return batches.compared_batches(
            self.valid.images, batch_size=self._batch_size, crop_size=self._crop_size,
            count=num_compared,
        )  # fmt: skip

    def precise_batches(self, epoch: int, num_examples: int) -> Batches:
        """The first training batches of `epoch` that hold at least `num_examples`."""
        count = -(-num_examples // self._batch_size)
        return {key: array[:count] for key, array in self.train_batches(epoch).items()}
