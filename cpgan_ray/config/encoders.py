"""How `jobs/attack.py` calls an encoder that is no run of this project: a file, or a black box."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from cpgan_ray.config.constraints import Positive, PositiveInt, config_class
from cpgan_ray.config.data import MAX_SIDE, MIN_SIDE
from cpgan_ray.config.marks import LOCAL, PORTABLE
from cpgan_ray.errors import InputError

Number = Annotated[float, Field(allow_inf_nan=False)]
"""Any finite number."""
Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE)]
"""A side of a picture in the store, in pixels."""
OF_FILES = ("layout", "scale", "mean", "std", "channel_order")
"""Settings that describe the input of a file; a black box takes the pictures as they are."""


@config_class("encoder")
class EncoderConfig:
    """How to call an encoder that is given as a file, as a command or as a URL."""

    command: Annotated[str | None, LOCAL] = None
    """A program of your own that reads pictures and prints codes, in place of a file, such as 'python my_encoder.py': a black box.
    docs/auditing.md has the protocol."""
    layout: Literal["auto", "nchw", "nhwc"] = "auto"
    """Axes of the input: channels before or after height and width. `auto`: found from its shape, if that leaves no doubt."""
    channel_order: Literal["rgb", "bgr"] | None = None
    """Order of the colours in the input. If it is not given, rgb is assumed, and the report states it."""
    scale: tuple[Number, Number] | None = None
    """What black and white are in the input, before mean and std: `0 1`, `0 255`, `-1 1`. If it is not given, -1 1 is assumed for
    floating-point input and 0 255 for integers, and the report states it."""
    mean: tuple[Number, ...] = ()
    """Subtracted from the values of `encoder.scale`: one number, or one for each channel in the order of the input."""
    std: tuple[Positive, ...] = ()
    """What the values are divided by after that: one number, or one for each channel in the order of the input."""
    size: tuple[Side, Side] | None = None
    """Height and width of the pictures. Needed for a file that takes pictures of any size."""
    batch_size: PositiveInt | None = None
    """Number of pictures in a call. Default: the number in the file, or 250 if it takes any number."""
    outputs: Annotated[tuple[str, ...], PORTABLE] = ()
    """Outputs that are attacked, by name; empty: all together."""
    max_numbers: NonNegativeInt = 2048
    """Longer codes are reduced to so many numbers by a random projection, so that the attacks take less time; 0: never. The report
    states it."""
    stochastic: bool = False
    """Declare a stochastic release: the encoder may draw random numbers, and its codes may only differ by independent noise."""
    memory_gb: Positive = 8.0
    """Memory limit of the process of another user's encoder, and of all codes, in GB."""
    timeout_s: Positive = 300.0
    """How long it may take to open the encoder, or to encode a block of 250 pictures, in seconds."""

    def __post_init__(self) -> None:
        if len(set(self.outputs)) < len(self.outputs):
            raise InputError(f"encoder.outputs is {self.outputs!r}; it must name each output once")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) not in (0, 1, 3):
                raise InputError(f"encoder.{name} is {values!r}; it must be one number, or three: one for each channel")
            if values and not self.scale:
                raise InputError(
                    f"encoder.{name} is {values!r}, but the values that it applies to are not given: set --encoder.scale to what "
                    "black and white are before, such as 0 1 or 0 255"
                )
        if self.scale and self.scale[0] == self.scale[1]:
            raise InputError(f"encoder.scale is {self.scale!r}; black and white must differ")
