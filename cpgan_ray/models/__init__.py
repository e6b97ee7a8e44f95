"""Networks, by family: privatizers (picture -> code), utility heads (code -> logits), reconstructors (code -> picture).

To add a privatizer or a reconstructor, write its class in the family's file and add a line to the dict at its end.
"""

from cpgan_ray.models.decoders import build_reconstructor
from cpgan_ray.models.privatizers import build_privatizer
from cpgan_ray.models.utility_heads import build_head

__all__ = ["build_head", "build_privatizer", "build_reconstructor"]
