"""Networks, by family: privatizers (picture -> code), utility heads (code -> logits), reconstructors (code -> picture).

To add a privatizer or a reconstructor, write its class in the family's file and add a line to the dict at its end.
"""

from cpgan_ray.nets.heads import build_head
from cpgan_ray.nets.privatizers import build_privatizer
from cpgan_ray.nets.reconstructors import build_reconstructor

__all__ = ["build_head", "build_privatizer", "build_reconstructor"]
