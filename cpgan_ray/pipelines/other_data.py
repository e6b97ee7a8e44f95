"""The pictures of an attacker who has none of the attacked data set: `attacks.attacker_data`."""

import dataclasses

import numpy as np

from cpgan_ray.config import Config, DataConfig
from cpgan_ray.config.data import MAX_SIDE, MIN_SIDE
from cpgan_ray.data import Dataset, load_unlabelled
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.encoders.encoder import Encoder, encode_all
from cpgan_ray.evaluation.protocol import OtherData


def load_other(config: Config, dataset: Dataset, *, noise: float) -> Dataset | None:
    """The attacker's pictures, of the size of the attacked ones; None if there are none. Nothing of them is held out.

    noise: of the attacked release.

    Raises: InputError if the attacked encoder takes other samples than colour pictures, if its release has noise, or if the folder
    cannot be read.
    """
    folder = config.attacks.attacker_data
    if folder is None:
        return None
    if noise:
        raise InputError(
            f"attacks.attacker_data is {folder}, but the release has noise ({noise:g}), with which it is not measured: leave it out"
        )
    height, width, channels = dataset.image_shape
    if dataset.train.dtype != np.uint8 or channels != 3 or not all(MIN_SIDE <= side <= MAX_SIDE for side in (height, width)):
        kind = "pictures" if dataset.train.dtype == np.uint8 else "signals"
        raise InputError(
            f"attacks.attacker_data is {folder}, but the encoder takes {kind} of {height} x {width} x {channels}, and own pictures "
            f"have 3 channels and sides of {MIN_SIDE} to {MAX_SIDE} pixels: leave it out"
        )
    data = DataConfig(
        dataset="pictures",
        image_size=height,
        image_width=0 if width == height else width,
        split="identity",
        final_fraction=0,
        horizontal_flip=dataset.info.mirrored,
    )
    try:
        return load_unlabelled(dataclasses.replace(config, data=data, data_dir=folder))
    except InputError as e:
        raise InputError(f"attacks.attacker_data: {e}") from e


def encode_other(encoder: Encoder, dataset: Dataset, config: Config, *, max_numbers: int | None = None) -> OtherData:
    """The attacker's pictures with the codes that the encoder gives them.

    Raises: InputError if the codes have more numbers than the attacks can take, because the two data sets would be reduced
    differently; and see `encode_all`.
    """
    codes = encode_all(encoder, dataset, config.attacks, max_numbers=max_numbers)
    if encoder.reduced_to:
        raise InputError(
            f"attacks.attacker_data is {config.attacks.attacker_data}, but codes of {encoder.k} numbers are reduced to "
            f"{encoder.reduced_to}, differently for each data set: raise --encoder.max-numbers, or leave it out"
        )
    return OtherData(dataset, codes)
