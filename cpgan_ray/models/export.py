"""Export trained networks as torch.export programs with a dynamic batch size, which do not need this package."""

import copy
import io
import warnings

import numpy as np
import torch
from torch import Tensor, nn

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
    CPU."""
    height, width, channels = image_shape
    net = copy.deepcopy(net).cpu().eval()
    kind = torch.uint8 if dtype == UINT8 else torch.float32
    parts = {
        "privatizer": (StoredInputPrivatizer(net["privatizer"]), torch.zeros(2, channels, height, width, dtype=kind)),
        "utility_head": (net["head"], torch.zeros(2, k)),
    }
    programs = {}
    for name, (module, example) in parts.items():
        program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "No complete tensor found"
            )  # about tensors that share storage; they are saved correctly
            torch.export.save(program, buffer := io.BytesIO())
        programs[name] = buffer.getvalue()
    return programs
