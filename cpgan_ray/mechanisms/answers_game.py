"""The game on answers as a mechanism: the undefended twin's hard answers, of which the game changes some (models/answers.py)."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from cpgan_ray.common.atomic_io import write_bytes
from cpgan_ray.config import Config, GameConfig, PrivatizerConfig
from cpgan_ray.config.players import ANSWER_STEP, ANSWERS
from cpgan_ray.data import Dataset, task_of
from cpgan_ray.data.answers import answer_bits
from cpgan_ray.mechanisms.base import Released
from cpgan_ray.mechanisms.games import play_game, undefended_config, undefended_twin
from cpgan_ray.models.pretrained import pinned_weights
from cpgan_ray.training.classifier import file_of
from cpgan_ray.training.teachers import answers_from, pinned_file

LEARNING_RATE, HEAD_LEARNING_RATE = 4e-3, 1e-2
"""Of the network that changes the answers, and of Bob's scales and shifts, as in preset `celeba_answers`."""
WARMUP = 0.2
"""The share of the epochs in which the privacy weight rises."""


def answers_game(config: Config, privacy_weight: float, dataset: Dataset) -> Released:
    """Train which hard answers of the undefended twin to change, against all adversaries of the configuration."""
    task, twin = task_of(dataset, config.data.labels), undefended_twin(config, dataset)
    assert twin.encoder is not None and twin.head is not None
    networks = {"privatizer": twin.encoder.state_dict(), "head": twin.head.state_dict()}
    with TemporaryDirectory(prefix="cpgan-answers-") as folder:
        weights, answers = Path(folder) / "classifier.pt", Path(folder) / "answers.npz"
        write_bytes(weights, file_of(networks, twin.logits["train"], undefended_config(config), dataset, task))
        write_bytes(answers, answers_from(twin.logits, task).to_bytes())
        privatizer = PrivatizerConfig(
            family=ANSWERS,
            classifier="twin",
            weights=pinned_weights(str(weights)),
            levels=2,
            quantization_step=ANSWER_STEP,
            learning_rate=LEARNING_RATE,
            weight_decay=config.privatizer.weight_decay,
        )
        own = {"teacher_weight": 1.0, "teacher_answers": pinned_file(str(answers))}
        utility = replace(config.utility, family=ANSWERS, options={}, learning_rate=HEAD_LEARNING_RATE, **own)
        game: GameConfig = replace(config.game, privacy_loss="recovered", warmup_epochs=WARMUP * config.epochs, rate_weight=0.0)
        parts = {"privatizer": privatizer, "utility": utility, "game": game}
        released = play_game(replace(config, k=task.num_logits, privacy_weight=privacy_weight, **parts))
    return replace(released, bits=answer_bits(task.labels))
