"""Backbones of timm, and pretrained weights from a file."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cpgan_ray.common.plugins import loading
from cpgan_ray.config import PrivatizerConfig
from cpgan_ray.errors import InputError

logger = logging.getLogger(__name__)

MAX_WEIGHTS_BYTES = 1 << 30
SUFFIXES = (".safetensors", ".pt", ".pth")


class Backbone(nn.Module):
    """A network of timm up to its last feature map, with the normalisation that it was trained with: pictures (B, C, H, W) in
    [-1, 1] -> features (B, F, h, w)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: Any, *, channels: int) -> None:
        super().__init__()
        trained = network.pretrained_cfg
        mean, deviation = (torch.tensor(trained.get(name, (0.5,))).float() for name in ("mean", "std"))
        if len(mean) != channels:  # grey pictures: the average over the colours
            mean, deviation = mean.mean().expand(channels), deviation.mean().expand(channels)
        self.register_buffer("mean", mean.clone().view(-1, 1, 1), persistent=False)
        self.register_buffer("deviation", deviation.clone().view(-1, 1, 1), persistent=False)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.forward_features(((x + 1) / 2 - self.mean) / self.deviation)


def timm_family(name: str) -> Callable[..., nn.Module]:
    """The family of a network of timm. Its options are those of `timm.create_model`.

    Raises: InputError if timm is not installed, or has no such network.
    """
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise InputError(f"privatizer.family is 'timm:{name}', but timm is not installed: pip install 'cpgan_ray[timm]'") from e
    if not timm.is_model(name.partition(".")[0]):
        known = timm.list_models(f"*{name.partition('.')[0][:12]}*")[:4] or timm.list_models("mobilenetv4*")[:4]
        raise InputError(f"privatizer.family is 'timm:{name}', but timm has no such network; similar: {', '.join(known)}")

    def build(config: PrivatizerConfig, image_shape: tuple[int, int, int], **options: Any) -> nn.Module:
        channels = image_shape[2]
        try:
            network = timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels, **options)
        except (TypeError, RuntimeError, ValueError, AssertionError) as e:
            reason = " ".join(str(e).split())[:200]
            raise InputError(
                f"timm cannot make {name} for pictures of {image_shape} with privatizer.options {options}: {reason}"
            ) from e
        backbone = Backbone(network, channels=channels)
        drop_unused(backbone, image_shape)
        if config.frozen_stages:
            freeze_stages(network, config.frozen_stages, name=name)
        return backbone

    return build


@torch.no_grad()
def drop_unused(backbone: Backbone, image_shape: tuple[int, int, int]) -> None:
    """Remove the parts of a network that its features do not use (its classifier), so that they are neither trained nor exported.

    Raises: InputError if the network does not accept pictures of this shape.
    """
    height, width, channels = image_shape
    used: set[nn.Module] = set()
    hooks = [part.register_forward_pre_hook(lambda module, _: used.add(module)) for part in backbone.network.children()]
    training = backbone.training
    try:
        backbone.eval()(torch.zeros(1, channels, height, width))
    except (RuntimeError, AssertionError, ValueError) as e:
        reason = " ".join(str(e).split())[:200]
        raise InputError(
            f"the network of timm does not accept samples of {height}x{width}x{channels} ({reason}): choose another one, or give "
            "privatizer.options such as '{\"img_size\": 64}'"
        ) from e
    finally:
        for hook in hooks:
            hook.remove()
        backbone.train(training)
    for name, part in list(backbone.network.named_children()):
        if part not in used and not isinstance(part, nn.ModuleList | nn.ModuleDict):  # these are called member by member
            setattr(backbone.network, name, nn.Identity())


def freeze_stages(network: Any, count: int, *, name: str) -> None:
    """Keep the weights and batch norm statistics of the first stages, by timm's own grouping of a network into layers.

    Raises: InputError if the network has no grouping, or fewer stages.
    """
    from timm.layers.norm_act import freeze_batch_norm_2d  # pyright: ignore[reportMissingImports]
    from timm.models import group_parameters  # pyright: ignore[reportMissingImports]

    if not hasattr(network, "group_matcher"):
        raise InputError(f"privatizer.frozen_stages is {count}, but timm groups {name} into no stages: set it to 0")
    groups = group_parameters(network, network.group_matcher(coarse=True))
    if count > len(groups):
        raise InputError(f"privatizer.frozen_stages is {count}, but {name} has {len(groups)} stages: lower it")
    frozen = {parameter for names in list(groups.values())[:count] for parameter in names}
    for parameter_name, parameter in network.named_parameters():
        parameter.requires_grad_(parameter_name not in frozen)
    for module_name, module in list(network.named_modules()):
        own = [n for n, _ in module.named_parameters(prefix=module_name, recurse=False)]
        if own and all(n in frozen for n in own) and isinstance(module, nn.modules.batchnorm._BatchNorm):
            parent, _, child = module_name.rpartition(".")
            setattr(network.get_submodule(parent), child, freeze_batch_norm_2d(module))


def read_weights(file: str) -> dict[str, Tensor]:
    """The tensors in a file of weights, by name. file: its path, and `@` and its digest if it is pinned.

    Raises: InputError if the file cannot be read, has another digest, or holds anything but tensors.
    """
    path, _, digest = file.partition("@")
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise InputError(f"privatizer.weights is {path}; it must be a file of tensors that ends in {', '.join(SUFFIXES)}")
    content, _ = loading.content_of(path, digest, suffix=suffix, limit=MAX_WEIGHTS_BYTES)
    try:
        if suffix == ".safetensors":
            from safetensors.torch import load  # pyright: ignore[reportMissingImports]

            return load(content)
        import io

        values = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        values = values.get("state_dict", values)
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}
    except ImportError as e:
        raise InputError(f"{path} needs the package safetensors: pip install 'cpgan_ray[timm]'") from e
    except Exception as e:  # each reader raises its own errors for a damaged file
        reason = " ".join(str(e).split())[:120]
        raise InputError(f"privatizer.weights {path} is damaged, or not a file of weights ({reason}): download it again") from e


def pinned_weights(file: str) -> str:
    """The file of weights with its digest."""
    path, _, digest = file.partition("@")
    return f"{path}@{loading.content_of(path, digest, suffix=Path(path).suffix, limit=MAX_WEIGHTS_BYTES)[1]}"


def load_weights(stages: nn.Module, file: str) -> None:
    """Put the weights of a file into the stages of a privatizer. Weights that the stages do not have (a classifier's) are left out.

    Raises: InputError naming the first weight that is missing, or has another shape.
    """
    network: Any = getattr(stages, "network", stages)
    weights, path = read_weights(file), file.partition("@")[0]
    own = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    for name, value in own.items():
        if name not in weights:
            raise InputError(f"privatizer.weights {path} has no {name!r}: it belongs to another network than privatizer.family")
        if weights[name].shape != value.shape:
            raise InputError(
                f"privatizer.weights {path} has {name!r} of shape {tuple(weights[name].shape)}, the network has "
                f"{tuple(value.shape)}: it belongs to another network than privatizer.family, or to pictures of other channels"
            )
    if all(value.device.type == "meta" for value in own.values()):
        return
    network.load_state_dict({name: weights[name] for name in own}, strict=False)
