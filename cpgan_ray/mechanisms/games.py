"""Mechanisms that the game of this project trains: CPGAN, the original's form of it, and the controls without adversaries."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cpgan_ray.common.atomic_io import atomic_path, make_folder
from cpgan_ray.common.locks import file_lock
from cpgan_ray.config import Config, NeuralConfig, PrivatizerConfig
from cpgan_ray.data import Dataset
from cpgan_ray.mechanisms.base import Released, shared_k
from cpgan_ray.models import build_privatizer
from cpgan_ray.training.game import play_in_process

FEATURES = "features"
"""Folder of a comparison's output in which it keeps undefended features, of a seed each, while it lasts."""
LINEAR_FEATURES = 24
"""Numbers of the original's undefended features of the Gaussian mixture."""
HAVE_DECODERS = ("mnist", "har", "genki4k")
"""Data sets for which the original has a decoder that takes codes of any length."""


def cpgan(config: Config, privacy_weight: float, dataset: Dataset) -> Released:
    """All adversaries of the configuration, at that privacy weight."""
    return played(replace(config, privacy_weight=privacy_weight))


def cpgan_one(config: Config, privacy_weight: float, dataset: Dataset) -> Released:
    """Against the neural adversary alone: what several of them gain is the difference."""
    return played(replace(config, privacy_weight=privacy_weight, adversaries=neural(config)))


def cpgan_paper(config: Config, trade_off: float, dataset: Dataset) -> Released:
    """The original's loss on its small data sets: lambda L_U - L_R with the raw error of its decoder, or where that is of
    another code the preset's neural adversary; ReLU codes (of the mixture linear ones), no warm-up, constant rates. The privacy
    weight is 1 / lambda. Networks beside the decoder, epochs, batches and averaging are the preset's; decoder and classifier make
    one step a batch (`citer`, 5 to 25 there)."""
    code = "raw" if is_linear(config.privatizer) else "relu"
    privatizer = replace(
        config.privatizer, code_activation=code, quantization_step=0.0, lr_schedule="constant", learning_rate=1e-3, weight_decay=0.0
    )
    utility = replace(config.utility, learning_rate=1e-3)
    game = replace(config.game, privacy_loss="negated_mse", warmup_epochs=0.0)
    theirs = {"decoder": NeuralConfig(architecture="paper")} if config.data.dataset in HAVE_DECODERS else neural(config)
    parts = {"privatizer": privatizer, "utility": utility, "game": game, "adversaries": theirs}
    return played(replace(config, privacy_weight=1 / trade_off, **parts))


def bottleneck(config: Config, share: float, dataset: Dataset) -> Released:
    """Nobody plays against it: what the shortness of the code does alone."""
    return played(replace(config, privacy_weight=0.0, k=shared_k(config, share)))


def undefended(config: Config, knob: float, dataset: Dataset) -> Released:
    """The stages' features themselves, trained for the task alone (the original's DNN)."""
    return features(config, dataset)


def features(config: Config, dataset: Dataset) -> Released:
    """Undefended features of one seed: several mechanisms make their codes of the same, which are trained by who comes first and
    kept in the run's output folder, where it has one."""
    if config.output is None:
        return played(feature_config(config, dataset))
    kept = config.output / FEATURES / f"{config.seed}.npz"
    kept.parent.parent.mkdir(parents=True, exist_ok=True)
    make_folder(kept.parent)
    with file_lock(kept.with_suffix(".lock")):
        if not kept.is_file():
            keep(played(feature_config(config, dataset)), kept)
    with np.load(kept) as arrays:
        found: dict[str, dict[str, np.ndarray]] = {"codes": {}, "logits": {}}
        for name, values in arrays.items():
            part, _, split = name.partition(" ")
            found[part][split] = values
    return Released(found["codes"], found["logits"])


def keep(released: Released, path: Path) -> None:
    parts = {"codes": released.codes, "logits": released.logits}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{f"{part} {split}": z for part, of in parts.items() for split, z in of.items()})  # pyright: ignore


def feature_config(config: Config, dataset: Dataset) -> Config:
    """The run that releases features without a bottleneck; where there are no stages but the sample itself, the original's linear
    ones."""
    linear = is_linear(config.privatizer)
    open_code = replace(config.privatizer, bottleneck=linear, code_activation="raw", quantization_step=0.0)
    k = LINEAR_FEATURES if linear else feature_length(config.privatizer, dataset)
    return replace(config, privacy_weight=0.0, k=k, privatizer=open_code)


def is_linear(privatizer: PrivatizerConfig) -> bool:
    """Whether its code is a linear map of the sample."""
    return privatizer.family in ("linear", "whitened")


def feature_length(privatizer: PrivatizerConfig, dataset: Dataset) -> int:
    """How many features its stages make of a sample."""
    whole = build_privatizer(replace(privatizer, bottleneck=True), k=1, image_shape=dataset.image_shape)
    assert isinstance(whole.code, torch.nn.Linear)
    return whole.code.in_features


def neural(config: Config) -> dict[str, NeuralConfig]:
    """The first neural adversary of a configuration; where it has none, a decoder of pictures, or of the mixture a perceptron."""
    found = {name: c for name, c in config.adversaries.items() if isinstance(c, NeuralConfig)}
    if not found:
        perceptron = config.data.dataset == "gaussian"
        found = {"mlp": NeuralConfig(architecture="mlp", width=128)} if perceptron else {"decoder": NeuralConfig(width=32)}
    return dict([next(iter(found.items()))])


def played(config: Config) -> Released:
    """The game to its end, in this process."""
    game = play_in_process(config, threads=config.runtime.threads or 1)
    while game.round < game.total_rounds:
        game.play(game.rounds_per_epoch)
    outcome = game.privatizer.outcome()
    return Released(outcome.codes, outcome.logits)
