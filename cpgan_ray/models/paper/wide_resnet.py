"""Wide residual networks, the reference utility head for SVHN (Zagoruyko and Komodakis 2016, arXiv 1605.07146)."""

from torch import Tensor, nn

from cpgan_ray.errors import InputError
from cpgan_ray.models.paper.picture import PreactivationUnit, as_picture
from cpgan_ray.models.paper.same_padding import initialise


class WideResNet(nn.Module):
    """WRN-depth-widen on a code that is a picture: (B, k) -> (B, outputs) (Zagoruyko and Komodakis 2016).

    3x3 convolution to 16 channels; three stages of (depth - 4) / 6 pre-activation units with 16, 32 and 64 times `widen` channels,
    strides 1, 2, 2; global average pool; linear. `dropout` is the probability of dropping; the reference implementation keeps 0.4.

    Raises:
        InputError: k is not H * W * C, or the depth is not 6n + 4.
    """

    def __init__(
        self,
        k: int,
        *,
        outputs: int,
        image_shape: tuple[int, int, int],
        depth: int = 16,
        widen: int = 8,
        dropout: float = 0.6,
    ) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise InputError(
                f"depth is {depth}; the depth of a wide residual network is 6 times the units of a stage plus 4: 10, 16, 22, ..."
            )
        self.unflatten = as_picture(k, image_shape=image_shape, network="wide")
        stages: list[nn.Module] = [nn.Conv2d(image_shape[2], 16, 3, padding=1, bias=False)]
        channels = 16
        for out, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
            for unit in range((depth - 4) // 6):
                stages.append(PreactivationUnit(channels, out, stride=1 if unit else stride, dropout=dropout))
                channels = out
        self.stages = nn.Sequential(*stages, nn.BatchNorm2d(channels), nn.ReLU())
        self.last = nn.Linear(channels, outputs)
        initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        return self.last(self.stages(self.unflatten(z)).mean((2, 3)))
