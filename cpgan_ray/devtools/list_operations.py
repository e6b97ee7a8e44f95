"""Prints the ATen operations in exported encoders of pictures, one `name.overload` per line.

    python -m cpgan_ray.devtools.list_operations [--only PREFIX] [--no-decomposition] > measured.txt

Needs timm and torchvision in addition to torch; use a separate environment. Networks are built without weights. One small network
of most families of timm and torchvision is exported with a dynamic batch and uint8 pictures, and then decomposed to the core ATen
operations. Networks that torch cannot export are logged.
"""

import argparse
import contextlib
import logging
import signal
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cpgan_ray.common import logs

logger = logging.getLogger(__name__)

TORCHVISION = """
alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5 mobilenet_v2
mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_0 swin_t swin_v2_t
vgg11_bn vit_b_16
"""
TIMM = """
vit_tiny_patch16_224 swin_tiny_patch4_window7_224 convnext_atto convnextv2_atto efficientnet_lite0 mobilenetv3_small_050
resnet10t regnetx_002 mobilevit_xxs repvgg_a0 ghostnet_050 edgenext_xx_small efficientformerv2_s0 poolformer_s12 levit_128s
cait_xxs24_224 pvt_v2_b0 mixer_s32_224 resmlp_12_224 fastvit_t8 hgnetv2_b0 tiny_vit_5m_224 xcit_nano_12_p16_224 eca_nfnet_l0
dla34 mobilenetv4_conv_small hrnet_w18_small inception_next_atto focalnet_tiny_srf davit_tiny twins_svt_small visformer_tiny
rexnet_100 skresnet18 starnet_s1 caformer_s18 mambaout_femto eva02_tiny_patch14_224 coatnet_nano_rw_224 coat_lite_tiny
crossvit_tiny_240 gmlp_s16_224 deit3_small_patch16_224 mobileone_s0 repvit_m0_9 shvit_s1 efficientvit_b0 efficientvit_m0
botnet26t_256 lambda_resnet26t res2net50_14w_8s resnest14d cspresnet50 beit_base_patch16_224 densenet121 dpn48b vovnet39a
tf_efficientnet_b0 tresnet_m nest_tiny volo_d1_224 convmixer_768_32 swinv2_cr_tiny_224
"""


LIMIT_S = 60
"""Networks whose export takes more CPU time are left out."""


class Scaled(nn.Module):
    """A network with uint8 pictures as its input."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(x.float() / 127.5 - 1)


def operations(program: torch.export.ExportedProgram) -> set[str]:
    names = set()
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
                name = node.target.name()
                names.add(name if "." in name.partition("::")[2] else f"{name}.default")
    return names


def networks() -> Iterator[tuple[str, Callable[[], nn.Module], tuple[int, int, int]]]:
    """Name of each network, function that builds it, shape of its pictures."""
    with contextlib.suppress(ImportError):
        import torchvision  # pyright: ignore[reportMissingImports]

        for name in TORCHVISION.split():
            side = 299 if name == "inception_v3" else 224
            yield f"torchvision.{name}", lambda name=name: torchvision.models.get_model(name, weights=None), (3, side, side)
    with contextlib.suppress(ImportError):
        import timm  # pyright: ignore[reportMissingImports]

        for name in TIMM.split():
            config = timm.get_pretrained_cfg(name, allow_unregistered=True)
            shape = config.input_size if config else (3, 224, 224)
            yield f"timm.{name}", lambda name=name: timm.create_model(name, pretrained=False, num_classes=0), shape


def raise_timeout(*_: object) -> None:
    raise TimeoutError


def main() -> None:
    logs.configure()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--no-decomposition", action="store_true")
    parsed = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    signal.signal(signal.SIGVTALRM, raise_timeout)
    first_network: dict[str, str] = {}
    for name, build, shape in networks():
        if not name.startswith(parsed.only):
            continue
        signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT_S)
        try:
            net = Scaled(build()).eval()
            example = torch.zeros(2, *shape, dtype=torch.uint8)
            with torch.no_grad():
                program = torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
            found_operations = operations(program)
            if not parsed.no_decomposition:
                with contextlib.suppress(Exception):
                    found_operations |= operations(program.run_decompositions())
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            logger.info("%s %d operations", name, len(found_operations))
        except Exception as e:
            logger.info("%s is left out: %s %s", name, type(e).__name__, str(e).partition("\n")[0][:120])
            continue
        for operation in sorted(found_operations - first_network.keys()):
            first_network[operation] = name
            print(operation, name, flush=True)


if __name__ == "__main__":
    main()
