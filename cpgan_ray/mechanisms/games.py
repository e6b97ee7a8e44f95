"""Mechanisms that the game of this project trains: CPGAN, the variant of the reference implementation, and the controls without
adversaries."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cpgan_ray.common.arrays import read_arrays
from cpgan_ray.common.atomic_io import atomic_path, make_folder
from cpgan_ray.common.json_files import write_json
from cpgan_ray.common.locks import file_lock
from cpgan_ray.common.process import pick_device
from cpgan_ray.config import Config, NeuralConfig, PrivatizerConfig
from cpgan_ray.config.targets import PICTURE
from cpgan_ray.data import Dataset, task_of
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.bounds.channel import Channel
from cpgan_ray.mechanisms.base import Released, Standardised, fraction_of_k, release
from cpgan_ray.models import build_head, build_privatizer
from cpgan_ray.models.cost import count
from cpgan_ray.training.game import play_in_process

FEATURES = "undefended"
"""Subfolder of a comparison's output for undefended features and twins, one file of each for each seed; it exists only during the
comparison."""
LINEAR_FEATURES = 24
"""Length of the undefended features that the reference implementation uses for the Gaussian mixture."""
HAVE_DECODERS = ("mnist", "har", "genki4k")
"""Data sets for which the reference implementation has a decoder that accepts codes of any length."""


def cpgan(config: Config, privacy_weight: float, dataset: Dataset) -> Released:
    """Train against all adversaries of the configuration, with the given privacy weight."""
    return play_game(replace(config, privacy_weight=privacy_weight))


def cpgan_one(config: Config, privacy_weight: float, dataset: Dataset) -> Released:
    """Train against only the neural adversary of the picture; the difference to `cpgan` is the gain from several adversaries."""
    game = replace(config.game, target_weights={})
    return play_game(replace(config, privacy_weight=privacy_weight, game=game, adversaries=neural(config)))


def cpgan_paper(config: Config, trade_off: float, dataset: Dataset) -> Released:
    """The loss of the reference implementation on its small data sets: lambda L_U - L_R, with the raw error L_R of a decoder.

    The decoder is the reference one if it accepts this code, otherwise the neural adversary of the preset. Codes are ReLU codes
    (linear codes for the mixture), normalised if they are rounded; there is no warm-up and learning rates are constant. The privacy
    weight is 1 / lambda. All other
    networks, epochs, batches and averaging come from the preset; there are neither teachers nor weights of labels or of the rate.
    Decoder and classifier make one step per batch (`citer`; the reference implementation makes 5 to 25).
    """
    config = config.with_equal_labels()
    code = "raw" if is_linear(config.privatizer) else "relu"
    privatizer = replace(config.privatizer, code_activation=code, lr_schedule="constant", learning_rate=1e-3, weight_decay=0.0)
    utility = replace(config.utility, learning_rate=1e-3, train_teachers=0, teacher_answers=None)
    game = replace(config.game, privacy_loss="negated_mse", warmup_epochs=0.0, target_weights={}, rate_weight=0.0)
    adversaries = {"decoder": NeuralConfig(architecture="paper")} if config.data.dataset in HAVE_DECODERS else neural(config)
    parts = {"privatizer": privatizer, "utility": utility, "game": game, "adversaries": adversaries}
    return play_game(replace(config, privacy_weight=1 / trade_off, **parts))


def bottleneck(config: Config, share: float, dataset: Dataset) -> Released:
    """Train without adversaries: only the short code protects the sample. At full length without rounding it is the undefended
    twin."""
    k = fraction_of_k(config, share)
    if k == config.k and not config.privatizer.quantization_step and not config.privatizer.noise:
        return undefended_twin(config, dataset)
    return play_game(replace(config.without_defence().with_equal_labels(), k=k))


def undefended(config: Config, knob: float, dataset: Dataset) -> Released:
    """Release the features of the stages, trained only for the task (DNN in the reference implementation). Bob's classifier of
    rounded features is trained on these."""
    trained = features(config, dataset)
    if not config.privatizer.quantization_step:
        return trained
    assert trained.encoder is not None
    stages = trained.encoder.to(pick_device(config.runtime.device))
    standardised = Standardised.fit(trained.codes["train"], device=pick_device(config.runtime.device))
    return release(lambda x, rng: standardised(stages(x)), dataset, config, name="dnn", client=stages)


def features(config: Config, dataset: Dataset) -> Released:
    """Undefended features of one seed."""
    return shared_game(feature_config(config, dataset), dataset, name=f"{config.seed}")


def undefended_twin(config: Config, dataset: Dataset) -> Released:
    """The undefended twin of one seed: the same network with the whole code, without rounding, trained only for the task."""
    return shared_game(undefended_config(config), dataset, name=f"{config.seed}-twin")


def undefended_config(config: Config) -> Config:
    """The configuration of an undefended training: without adversaries, rounding, noise, and weights of labels and of the rate."""
    raw = config.without_defence().without_rounding().with_equal_labels()
    return replace(raw, privatizer=replace(raw.privatizer, noise=0.0))


def shared_game(config: Config, dataset: Dataset, *, name: str) -> Released:
    """A game that several mechanisms need: the first one plays it and stores what it releases in the comparison's output folder, if
    there is one.

    Raises: InputError if what was stored is damaged.
    """
    if config.output is None:
        return play_game(config)
    path = config.output / FEATURES / f"{name}.npz"
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    make_folder(path.parent)
    with file_lock(path.with_suffix(".lock")):
        if not path.is_file():
            started = time.process_time()
            save_released(play_game(config), path)
            write_json(path.with_suffix(".json"), {"cpu_s": round(time.process_time() - started, 2)})
    parts: dict[str, dict[str, np.ndarray]] = {"codes": {}, "logits": {}, "encoder": {}, "head": {}}
    damaged = f"{path} is damaged ({{}}): delete it, its training is repeated"
    try:
        for key, values in read_arrays(path.read_bytes()).items():
            part, _, entry = key.partition(" ")
            parts[part][entry] = values
    except (OSError, KeyError, ValueError) as e:
        raise InputError(damaged.format(e)) from e
    with torch.random.fork_rng(devices=()):
        encoder = build_privatizer(config.privatizer, k=config.k, image_shape=dataset.image_shape).eval()
        outputs = task_of(dataset, config.data.labels).num_logits
        head = build_head(config.utility, k=config.k, num_logits=outputs, image_shape=dataset.image_shape).eval()
    for network, weights in ((encoder, parts["encoder"]), (head, parts["head"])):
        try:
            network.load_state_dict({key: torch.from_numpy(values) for key, values in weights.items()})
        except (RuntimeError, TypeError) as e:
            raise InputError(damaged.format("other networks")) from e
    return Released(parts["codes"], parts["logits"], encoder=encoder, head=head, cloud=count(head, (config.k,)))


def save_released(released: Released, path: Path) -> None:
    """Write codes, logits and the weights of encoder and head to an npz file."""
    assert released.encoder is not None and released.head is not None
    networks = {"encoder": released.encoder, "head": released.head}
    weights = {name: {key: v.cpu().numpy() for key, v in network.state_dict().items()} for name, network in networks.items()}
    parts = {"codes": released.codes, "logits": released.logits, **weights}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{f"{part} {key}": z for part, arrays in parts.items() for key, z in arrays.items()})  # pyright: ignore


def feature_config(config: Config, dataset: Dataset) -> Config:
    """The configuration that releases features without a bottleneck; for a linear privatizer, which has no stages, the linear
    features of the reference implementation."""
    linear = is_linear(config.privatizer)
    raw = undefended_config(config)
    raw_code = replace(raw.privatizer, bottleneck=linear, code_activation="raw")
    k = LINEAR_FEATURES if linear else feature_length(config.privatizer, dataset)
    return replace(raw, k=k, privatizer=raw_code)


def is_linear(privatizer: PrivatizerConfig) -> bool:
    """Whether the code is a linear map of the sample."""
    return privatizer.family in ("linear", "whitened")


def feature_length(privatizer: PrivatizerConfig, dataset: Dataset) -> int:
    """The number of features that the stages compute for a sample."""
    raw = replace(privatizer, bottleneck=True, quantization_step=0.0, levels=0)
    net = build_privatizer(raw, k=1, image_shape=dataset.image_shape)
    assert isinstance(net.code, torch.nn.Linear)
    return net.code.in_features


def neural(config: Config) -> dict[str, NeuralConfig]:
    """The first neural adversary of the picture in a configuration. If it has none: a decoder for pictures, a perceptron for the
    mixture."""
    of_picture = {name: c for name, c in config.adversaries.items() if c.target == PICTURE}
    adversaries = {name: c for name, c in of_picture.items() if isinstance(c, NeuralConfig)}
    if not adversaries:
        perceptron = config.data.dataset == "gaussian"
        adversaries = {"mlp": NeuralConfig(architecture="mlp", width=128)} if perceptron else {"decoder": NeuralConfig(width=32)}
    return dict([next(iter(adversaries.items()))])


def play_game(config: Config) -> Released:
    """Play the complete game in this process."""
    game = play_in_process(config, threads=config.runtime.threads or 1)
    while game.round < game.total_rounds:
        game.play(game.rounds_per_epoch)
    outcome = game.privatizer.outcome()
    encoder, head = (game.privatizer.defender.released[name] for name in ("privatizer", "head"))
    channel = Channel.of_privatizer(config.privatizer, clean=outcome.clean)
    return Released(outcome.codes, outcome.logits, encoder=encoder, head=head, cloud=count(head, (config.k,)), channel=channel)
