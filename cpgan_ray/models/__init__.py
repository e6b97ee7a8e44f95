"""Networks: privatizers (picture -> code), utility heads (code -> logits) and reconstructors (code -> picture).

To add a privatizer or a reconstructor, write its class and add an entry to the dict in the same module.
"""

from cpgan_ray.models.building import build_privatizer
from cpgan_ray.models.decoders import build_reconstructor
from cpgan_ray.models.utility_heads import build_head

__all__ = ["build_head", "build_privatizer", "build_reconstructor"]
