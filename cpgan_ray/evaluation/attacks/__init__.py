"""Fresh attacks: reconstructors that took no part in training. Each is fitted on pairs of codes and pictures and chooses its
settings on tuning rows. Other code then scores it once, on rows that it has never seen.

An attack is an entry of `ATTACKS`, or code that the user names: a function from `AttackData` and `AttackConfig` to a `Fitted`.
Requirements for every attack (see base.py): try standardised and whitened codes, restart with several seeds, and raise the budget
until more budget no longer helps; if it still helps at the end, return `saturated=False`.
"""

from collections.abc import Callable

from cpgan_ray.common.plugins import Parts
from cpgan_ray.common.registry import remember
from cpgan_ray.config import AttackConfig
from cpgan_ray.evaluation.attacks.base import AttackData, Fitted
from cpgan_ray.evaluation.attacks.closed_form import ridge_attack
from cpgan_ray.evaluation.attacks.kernel import kernel_attack
from cpgan_ray.evaluation.attacks.nearest import nearest_attack
from cpgan_ray.evaluation.attacks.neural import decoder_attack, mlp_attack, resnet_decoder_attack

_built_in: dict[str, Callable[[AttackData, AttackConfig], Fitted]] = {
    "ridge": ridge_attack,
    "kernel": kernel_attack,
    "mlp": mlp_attack,
    "decoder": decoder_attack,
    "resnet_decoder": resnet_decoder_attack,
    "nearest": nearest_attack,
}
ATTACKS: Parts[Callable[[AttackData, AttackConfig], Fitted]] = Parts(
    _built_in, kind="attack", group="cpgan_ray.attacks", field="attacks.names"
)
remember(__name__, "ATTACKS")
