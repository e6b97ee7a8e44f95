"""Whole configurations by name. A preset decides which adversaries play, unless `--adversaries` does; flags tune the rest.

To add one: a function that returns a Config, and a line in PRESETS.
"""

from collections.abc import Callable
from dataclasses import replace

from cpgan_ray.config.attacks import AttackConfig
from cpgan_ray.config.data import DataConfig
from cpgan_ray.config.players import ANSWERS, GameConfig, KernelConfig, NeuralConfig, PrivatizerConfig, RidgeConfig, UtilityConfig
from cpgan_ray.config.runtime import RuntimeConfig
from cpgan_ray.config.schema import Config
from cpgan_ray.errors import InputError

CELEBA_CROP = 0.83
"""The usual square of 148 of 178 pixels: without it, most of a picture's variance is background."""


def smoke() -> Config:
    """A check that everything works: every kind of player, a few rounds, few small procedural faces. Its numbers mean nothing."""
    return Config(
        preset="smoke",
        k=16,
        epochs=2,
        batch_size=64,
        data=DataConfig(image_size=32, num_identities=200, pictures_per_identity=2),
        privatizer=PrivatizerConfig(width=8, depth=3, quantization_step=0.5),
        adversaries={
            "ridge": RidgeConfig(memory_batches=2, components=32),
            "ridge_epoch": RidgeConfig(fit="epoch", components=32),
            "rbf": KernelConfig(memory_batches=2, components=32),
            "fourier": KernelConfig(features=64, memory_batches=2, components=32),
            "mlp": NeuralConfig(architecture="mlp", width=64, components=32),
            "decoder": NeuralConfig(architecture="conv", width=8),
        },
        runtime=RuntimeConfig(threads=1),
        attacks=AttackConfig(
            mlp_widths=(64,),
            decoder_width=4,
            kernel_features=256,
            epochs=1,
            max_budget_doublings=1,
            fit_fractions=(0.1,),
            num_shifted=1,
            generative=False,
        ),
    )


def faces() -> Config:
    """The default: all attributes of the embedded procedural faces."""
    return Config(
        preset="faces",
        k=64,
        epochs=10,
        batch_size=480,
        privacy_weight=0.2,
        privatizer=PrivatizerConfig(quantization_step=2.0, width=24),
        game=GameConfig(warmup_epochs=4),
        adversaries={"ridge": RidgeConfig(), "rbf": KernelConfig(bandwidths=(1.0,), penalties=(1e-3,))},
        attacks=AttackConfig(
            mlp_widths=(512,),
            decoder_width=8,
            kernel_features=1024,
            epochs=2,
            max_budget_doublings=2,
            fit_fractions=(0.1,),
            generative=False,
        ),
    )


def celeba() -> Config:
    """All 40 attributes of CelebA at 64 x 64."""
    return Config(
        preset="celeba",
        k=128,
        epochs=16,
        privacy_weight=0.2,
        data=DataConfig(dataset="celeba", crop=CELEBA_CROP),
        privatizer=PrivatizerConfig(quantization_step=2.0),
        game=GameConfig(warmup_epochs=6),
        adversaries={"ridge": RidgeConfig(), "rbf": KernelConfig(bandwidths=(1.0,), penalties=(1e-3,))},
    )


def celeba_single() -> Config:
    """One attribute of CelebA, `Male`, with balanced accuracy."""
    return replace(
        celeba(),
        preset="celeba_single",
        k=16,
        data=DataConfig(dataset="celeba", crop=CELEBA_CROP, labels=("Male",)),
        utility=UtilityConfig(class_weighted_loss=True),
    )


def celeba_light() -> Config:
    """Preset `celeba` for a client that spends at most a million multiply-adds on a picture."""
    privatizer = PrivatizerConfig(family="patch", width=32, depth=4, max_multiply_adds=1_000_000, quantization_step=2.0)
    return replace(celeba(), preset="celeba_light", privatizer=privatizer)


def celeba_tiny() -> Config:
    """Preset `celeba` for a client that spends at most 300,000 multiply-adds on a picture, with codes of 64 numbers."""
    privatizer = PrivatizerConfig(family="patch", width=16, depth=1, max_multiply_adds=300_000, quantization_step=2.0)
    return replace(celeba(), preset="celeba_tiny", k=64, privatizer=privatizer)


def celeba_answers() -> Config:
    """Preset `celeba` for a client that runs the whole classifier: the game starts at its 40 hard answers, and changes those that
    show more of the picture than they are worth."""
    return replace(
        celeba(),
        preset="celeba_answers",
        k=40,
        epochs=36,
        privacy_weight=0.1,
        privatizer=PrivatizerConfig(family=ANSWERS, classifier="celeba", levels=2, quantization_step=1.0, learning_rate=4e-3),
        utility=UtilityConfig(family=ANSWERS, learning_rate=1e-2, teacher_weight=1.0),
        game=GameConfig(warmup_epochs=8),
    )


def celeba_paper() -> Config:
    """The paper's game: raw `-L_R` on ReLU codes, in each epoch against the adversary of the smallest MSE, its three adversaries
    and weights: lambda is 1 against the decoder and 10 against the closed-form ones, of a utility loss that is the sum over the 40
    attributes, and is their mean here.

    Kept to show what such a game claims in training and what fresh attacks find. So that two cores are done in a quarter of an
    hour, pictures are 64 x 64, networks this project's of that size, Fourier features 1,024 instead of 5,000, `citer` 3 instead of
    25 and epochs 8 instead of 15.
    """
    return Config(
        preset="celeba_paper",
        k=128,
        epochs=8,
        batch_size=512,
        privacy_weight=1 / 40,
        data=DataConfig(dataset="celeba", crop=CELEBA_CROP, horizontal_flip=False),
        privatizer=PrivatizerConfig(code_activation="relu", learning_rate=1e-3, lr_schedule="constant"),
        utility=UtilityConfig(learning_rate=1e-3, dropout=0.5),
        game=GameConfig(privacy_loss="negated_mse", schedule="epochwise"),
        adversaries={
            "decoder": NeuralConfig(architecture="conv", width=32, steps=3),
            "lrr": RidgeConfig(fit="epoch", penalties=(1e-6,), components=256, loss_weight=0.1),
            "krr": KernelConfig(fit="epoch", features=1024, penalties=(1e-6,), components=256, loss_weight=0.1),
        },
    )


def small(dataset: str, *, k: int, epochs: int, batch_size: int, components: int = 256, privatizer: PrivatizerConfig) -> Config:
    """The default game on one of the small data sets: a normalised, rounded code, against ridge, kernel and a perceptron, which on
    pictures of this size learns faster than the decoders of the reference implementation and is therefore stronger."""
    return Config(
        preset=dataset,
        k=k,
        epochs=epochs,
        batch_size=batch_size,
        privacy_weight=0.3,
        data=DataConfig(dataset=dataset),
        privatizer=privatizer,
        utility=UtilityConfig(hidden=128, dropout=0.2),
        game=GameConfig(warmup_epochs=epochs // 3),
        adversaries={
            "ridge": RidgeConfig(memory_batches=2, components=components),
            "rbf": KernelConfig(bandwidths=(1.0,), penalties=(1e-3,), memory_batches=2, components=components),
            "mlp": NeuralConfig(architecture="mlp", width=512, steps=3, components=components),
        },
    )


def mnist() -> Config:
    """MNIST, ten digits, 28 x 28."""
    return small("mnist", k=10, epochs=12, batch_size=500, privatizer=PrivatizerConfig(family="lenet", quantization_step=1.0))


def digits() -> Config:
    """scikit-learn's 8 x 8 digits: real, embedded, done in seconds."""
    privatizer = PrivatizerConfig(family="conv", depth=2, width=16, quantization_step=1.0)
    return small("digits", k=16, epochs=30, batch_size=200, components=48, privatizer=privatizer)


def har() -> Config:
    """UCI HAR, six activities from 128 steps of nine inertial signals, split by subject; with the decoder of the reference
    implementation instead of the perceptron."""
    privatizer = PrivatizerConfig(family="lenet", quantization_step=1.0, weight_decay=0.05, ema_decay=0.99)
    config = small("har", k=32, epochs=30, batch_size=250, privatizer=privatizer)
    closed_form = {name: config.adversaries[name] for name in ("ridge", "rbf")}
    adversaries = closed_form | {"decoder": NeuralConfig(architecture="paper")}
    return replace(config, utility=replace(config.utility, dropout=0.5), adversaries=adversaries)


def genki4k() -> Config:
    """GENKI-4K, smiling or not, 64 x 64: 2,520 pictures to learn from, so small batches, shifted, and several past batches in
    memory."""
    config = small("genki4k", k=32, epochs=30, batch_size=100, privatizer=PrivatizerConfig(family="lenet", quantization_step=1.0))
    adversaries = {name: replace(a, memory_batches=4 if a.kind == "neural" else 6) for name, a in config.adversaries.items()}
    utility = replace(config.utility, dropout=0.4)
    return replace(config, data=replace(config.data, max_shift_px=4), utility=utility, adversaries=adversaries)


def cifar10() -> Config:
    """CIFAR-10, ten kinds of objects, 32 x 32."""
    privatizer = PrivatizerConfig(family="residual", depth=3, width=32, quantization_step=1.0)
    config = small("cifar10", k=128, epochs=20, batch_size=500, privatizer=privatizer)
    return replace(config, data=replace(config.data, max_shift_px=3))


def svhn() -> Config:
    """SVHN, ten digits in street pictures, 32 x 32."""
    privatizer = PrivatizerConfig(family="residual", depth=3, width=32, quantization_step=1.0)
    return small("svhn", k=64, epochs=20, batch_size=500, privatizer=privatizer)


def gaussian() -> Config:
    """The mixture of two Gaussians in 32 dimensions, for which theory gives the best codes (theory/): one number, on whitened
    input, against ridge on large batches."""
    return Config(
        preset="gaussian",
        k=1,
        epochs=125,
        batch_size=4000,
        data=DataConfig(dataset="gaussian"),
        privatizer=PrivatizerConfig(family="whitened", learning_rate=1e-2),
        utility=UtilityConfig(hidden=0, learning_rate=5e-2),
        adversaries={"ridge": RidgeConfig(memory_batches=0, penalties=(1e-3,), components=32)},
    )


def gaussian_kernel() -> Config:
    """Preset `gaussian` with a kernel adversary in addition to ridge, against attacks of any kind: a code that hides from every
    linear attack need not hide from others."""
    config = gaussian()
    kernel = KernelConfig(features=128, bandwidths=(0.3,), penalties=(1e-3,), memory_batches=0, components=32)
    return replace(config, preset="gaussian_kernel", adversaries=config.adversaries | {"rbf": kernel})


def with_attackers_people(config: Config) -> Config:
    """A comparison withholds half of the training people from the defender, as the attacker's own: an attack on people whom the
    defender never saw (`fresh`) then has as many pictures as one on leaked pictures."""
    return replace(config, data=replace(config.data, attacker_share=0.5))


def for_comparison(config: Config) -> Config:
    """The configuration of a cell of a comparison: of the larger data sets 40,000 training samples, half of them the defender's;
    ridge, kernel, perceptron and nearest-neighbour attacks, and their stack, on leaked and on fresh samples, at most 10,000 of them
    (with mirror images)."""
    config = with_attackers_people(config)
    attacks = replace(
        config.attacks,
        names=("ridge", "kernel", "mlp", "nearest", "stack"),
        variants=("leaked", "fresh"),
        fit_fractions=(),
        restarts=1,
        max_budget_doublings=5,
        mlp_widths=(512,),
        kernel_features=1024,
        max_rows=10_000,
        identity=False,
        attributes=False,
        similarity=False,
        generative=False,
        legacy=True,
    )
    data = replace(config.data, max_train_samples=40_000) if config.data.dataset in ("mnist", "cifar10", "svhn") else config.data
    return replace(config, data=data, attacks=attacks, runtime=replace(config.runtime, threads=1))


def for_search(config: Config) -> Config:
    """The configuration of a trial of a search: the three attacks that were strongest on every preset, one seed each, and their
    stack, on leaked pictures. The recommended setting is trained with the whole tournament."""
    attacks = replace(
        config.attacks,
        names=("ridge", "kernel", "mlp", "stack"),
        variants=("leaked",),
        fit_fractions=(),
        restarts=1,
        identity=False,
        attributes=False,
        similarity=False,
        generative=False,
    )
    return replace(config, attacks=attacks, tracking=replace(config.tracking, log_models=False, system_metrics=False))


def pictures() -> Config:
    """Your own pictures, 64 x 64: the game of preset `celeba`, with smaller batches and several past ones in memory, because most
    collections are smaller."""
    return Config(
        preset="pictures",
        k=64,
        epochs=20,
        batch_size=320,
        privacy_weight=0.2,
        data=DataConfig(dataset="pictures"),
        privatizer=PrivatizerConfig(quantization_step=2.0),
        game=GameConfig(warmup_epochs=6),
        adversaries={
            "ridge": RidgeConfig(memory_batches=4),
            "rbf": KernelConfig(bandwidths=(1.0,), penalties=(1e-3,), memory_batches=4),
        },
    )


SMALL = (mnist, digits, har, genki4k, cifar10, svhn, gaussian, gaussian_kernel)
PRESETS: dict[str, Callable[[], Config]] = {
    f.__name__: f
    for f in (smoke, faces, celeba, celeba_single, celeba_light, celeba_tiny, celeba_answers, celeba_paper, *SMALL, pictures)
}


def preset(name: str) -> Config:
    """The preset with this name.

    Raises: InputError with the choices.
    """
    if name not in PRESETS:
        raise InputError(f"there is no preset {name!r}; choose from {', '.join(PRESETS)}")
    return PRESETS[name]()
