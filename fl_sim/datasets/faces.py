"""Small grey crops of real faces, and of what is no face, that ship with scikit-image."""

import numpy as np
import torch

from fl_sim.datasets.channel_statistics import channel_statistics
from fl_sim.datasets.dataset import Dataset
from fl_sim.datasets.hold_out import with_held_out_test_set
from fl_sim.records import DatasetSpec

_NUM_FACES = 100


def faces(*, test_fraction: float = 0.2) -> Dataset:
    """Load 100 faces (class 1) and 100 other crops (class 0), 25x25 pixels, grey.

    Args:
        test_fraction: Share of each class that is held out for the central test set, in [0, 1).

    Returns:
        Two classes; in the source's order, faces first.

    References:
        Huang et al., Labeled Faces in the Wild, University of Massachusetts, Technical Report 07-49, 2007.
    """
    from skimage.data import lfw_subset  # scikit-image imports slowly; no other data set should pay

    crops = np.asarray(lfw_subset())
    images = torch.from_numpy(np.rint(crops * 255).astype(np.uint8)).unsqueeze(1)
    labels = (torch.arange(len(images)) < _NUM_FACES).long()
    mean, std = channel_statistics(images)
    height, width = images.shape[2:]
    spec = DatasetSpec(
        image_shape=(1, height, width), num_classes=2, mean=mean, std=std, class_names=("no face", "face")
    )
    return with_held_out_test_set(name="faces", images=images, labels=labels, spec=spec, test_fraction=test_fraction)
