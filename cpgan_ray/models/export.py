"""Export trained networks as torch.export programs with a dynamic batch size, which do not need this package."""

import copy
import io
import logging
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from cpgan_ray.common.plugins.errors import PASSED, place_of
from cpgan_ray.errors import InputError
from cpgan_ray.models.own import has_own_code

logger = logging.getLogger(__name__)

UINT8 = np.dtype(np.uint8)


class StoredInputPrivatizer(nn.Module):
    """A privatizer that accepts pictures in the type of the store: uint8 or float32 (B, C, H, W) -> float32 codes (B, k)."""

    def __init__(self, privatizer: nn.Module) -> None:
        super().__init__()
        self.privatizer = privatizer

    def forward(self, pictures: Tensor) -> Tensor:
        return self.privatizer(pictures.float() / 127.5 - 1 if pictures.dtype == torch.uint8 else pictures)


def export_programs(net: nn.ModuleDict, *, k: int, image_shape: tuple[int, int, int], dtype: np.dtype = UINT8) -> dict[str, bytes]:
    """`privatizer` (pictures in the type of the store -> z) and `utility_head` (z -> logits) as the bytes of `.pt2` files, for the
    CPU.

    Raises: InputError if a network of the user's own cannot be exported.
    """
    height, width, channels = image_shape
    net = copy.deepcopy(net).cpu().eval()
    kind = torch.uint8 if dtype == UINT8 else torch.float32
    parts = {
        "privatizer": (StoredInputPrivatizer(net["privatizer"]), torch.zeros(2, channels, height, width, dtype=kind)),
        "utility_head": (net["head"], torch.zeros(2, k)),
    }
    programs = {}
    for name, (module, example) in parts.items():
        program = export_program(module, example, what=name)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "No complete tensor found"
            )  # about tensors that share storage; they are saved correctly
            torch.export.save(program, buffer := io.BytesIO())
        programs[name] = buffer.getvalue()
    return programs


def export_program(module: nn.Module, example: Tensor, *, what: str) -> torch.export.ExportedProgram:
    """A network as a program with a dynamic batch size. what: for the message.

    Raises: InputError if the network has a user's own code that cannot be exported.
    """
    dynamic = ({0: torch.export.Dim("batch", min=1)},)
    if not has_own_code(module):
        return torch.export.export(module, (example,), dynamic_shapes=dynamic)
    try:
        return torch.export.export(module, (example,), dynamic_shapes=dynamic)
    except PASSED:
        raise
    except Exception as e:  # torch raises many types
        logger.debug(f"the {what} cannot be exported", exc_info=e)
        reason = " ".join(str(e).split())[:250]
        raise InputError(
            f"{place_of(e) or what}: the {what} cannot be exported for any batch size ({reason}): use only tensor operations, and "
            "no Python numbers that depend on the batch"
        ) from e
