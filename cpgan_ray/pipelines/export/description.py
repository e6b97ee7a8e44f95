"""The parts of a manifest that come from the data set and the machine."""

from importlib.metadata import PackageNotFoundError, version

from cpgan_ray.config import Config
from cpgan_ray.data import Dataset, Task
from cpgan_ray.deploy.manifest import Label, Preprocessing

PACKAGES = ("cpgan_ray", "torch", "onnx", "onnxscript", "onnxruntime", "constriction", "numpy", "pillow")
CROPPED = ("faces", "celeba", "pictures")
"""Data sets that cut a centred part of each picture, of the size `data.crop`."""


def labels_of(task: Task) -> tuple[Label, ...]:
    """The labels of a task, with their logits."""
    return tuple(Label(label.name, label.values, label.first_logit) for label in task.labels)


def preprocessing_of(config: Config, dataset: Dataset) -> Preprocessing:
    """How a picture of a client becomes a value like those of the store (H, W, C)."""
    height, width, channels = dataset.image_shape
    dtype = dataset.train.dtype.name
    is_picture = dtype == "uint8" and channels in (1, 3)
    return Preprocessing(
        kind="picture" if is_picture else "array",
        channels=channels,
        height=height,
        width=width,
        crop=config.data.crop if is_picture and config.data.dataset in CROPPED else 1.0,
        dtype="uint8" if dtype == "uint8" else "float32",
    )


def versions() -> dict[str, str]:
    """Versions of the packages that made a bundle; without those that are absent."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
