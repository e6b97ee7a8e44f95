"""Print the ATen operations that exported encoders of pictures are made of, one `name.overload` a line.

    python tools/list_operations.py [--only PREFIX] > measured.txt

Needs timm and torchvision next to torch, in an environment of its own. Networks are built without weights. One small network of
each module of timm and one of each family of torchvision are exported with a dynamic batch and uint8 pictures, and once more
decomposed to the core ATen operations. Networks that torch cannot export are named on standard error.
"""

import argparse
import contextlib
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

SMALL = re.compile(
    r"(^|_)(test|atto|femto|pico|nano|zepto|xxs|xxt|tiny|t0|t|xs|s0|s|small|mini|18|b0|0|a0|050|lite0|10|26|50)(_|$)"
)
TORCHVISION = """
alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5 mobilenet_v2
mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_0 swin_t swin_v2_t
vgg11_bn vit_b_16
"""


LIMIT_S = 60
"""Networks whose shapes take torch more CPU time than this, in seconds, are left out."""


class Scaled(nn.Module):
    """A network with uint8 pictures as its input."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(x.float() / 127.5 - 1)


def operations(program: torch.export.ExportedProgram) -> set[str]:
    found = set()
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
                name = node.target.name()
                found.add(name if "." in name.partition("::")[2] else f"{name}.default")
    return found


def networks() -> Iterator[tuple[str, Callable[[], nn.Module], tuple[int, int, int]]]:
    """Name, how to build it, size of its pictures."""
    with contextlib.suppress(ImportError):
        import torchvision

        for name in TORCHVISION.split():
            side = 299 if name == "inception_v3" else 224
            yield f"torchvision.{name}", lambda name=name: torchvision.models.get_model(name, weights=None), (3, side, side)
    with contextlib.suppress(ImportError):
        import timm

        for module in sorted(timm.list_modules()):
            names = timm.list_models(module=module)
            for name in sorted(names, key=lambda n: (not SMALL.search(n), len(n)))[:1]:
                size = timm.get_pretrained_cfg(name, allow_unregistered=True)
                shape = size.input_size if size else (3, 224, 224)
                yield f"timm.{name}", lambda name=name: timm.create_model(name, pretrained=False, num_classes=0), shape


def too_slow(*_: object) -> None:
    raise TimeoutError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    only = parser.parse_args().only
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    signal.signal(signal.SIGVTALRM, too_slow)
    found: dict[str, str] = {}
    for name, build, shape in networks():
        if not name.startswith(only):
            continue
        signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT_S)
        try:
            net = Scaled(build()).eval()
            example = torch.zeros(2, *shape, dtype=torch.uint8)
            with torch.no_grad():
                program = torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
            used = operations(program)
            with contextlib.suppress(Exception):
                used |= operations(program.run_decompositions())
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            print(name, len(used), "operations", file=sys.stderr, flush=True)
        except Exception as e:
            print(name, "is left out:", type(e).__name__, str(e).partition("\n")[0][:120], file=sys.stderr, flush=True)
            continue
        for operation in sorted(used - found.keys()):
            found[operation] = name
            print(operation, name, flush=True)


if __name__ == "__main__":
    main()
