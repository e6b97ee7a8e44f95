"""Fresh attacks: reconstructors that never saw training. Each is fitted on pairs of codes and pictures, chooses its settings on
tuning rows, and is scored once, by somebody else, on rows that it has never seen.

An attack is an entry of `ATTACKS`: a function from `AttackData` and `AttackConfig` to a `Fitted`. To add one, write such a
function in a module of its own and enter it here. What every attack owes (see base.py): it sees codes standardised and whitened,
restarts under several seeds, and raises its budget until that no longer helps, or says that it still did.
"""

from collections.abc import Callable

from cpgan_ray.common.registry import remember
from cpgan_ray.config import AttackConfig
from cpgan_ray.evaluation.attacks.base import AttackData, Fitted
from cpgan_ray.evaluation.attacks.closed_form import kernel_attack, ridge_attack
from cpgan_ray.evaluation.attacks.nearest import nearest_attack
from cpgan_ray.evaluation.attacks.neural import decoder_attack, mlp_attack, resnet_decoder_attack

ATTACKS: dict[str, Callable[[AttackData, AttackConfig], Fitted]] = {
    "ridge": ridge_attack,
    "kernel": kernel_attack,
    "mlp": mlp_attack,
    "decoder": decoder_attack,
    "resnet_decoder": resnet_decoder_attack,
    "nearest": nearest_attack,
}
remember(__name__, "ATTACKS")
