"""A bundle of the networks of preset `faces` without training, and procedural faces as its pictures."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from cpgan_ray.common.codec import codec_of
from cpgan_ray.config import Config
from cpgan_ray.config.presets import preset
from cpgan_ray.data.datasets.faces.files import write_faces
from cpgan_ray.deploy.bundle import BUNDLE_REPORT, CODEC, HEAD, PRIVATIZER, RUN_REPORT, Bundle, read_bundle
from cpgan_ray.deploy.manifest import FORMAT, Label, Preprocessing
from cpgan_ray.deploy.onnx_export import onnx_model
from cpgan_ray.deploy.preprocessing import prepare
from cpgan_ray.deploy.writing import as_bytes, with_manifest, write_folder
from cpgan_ray.models.building import build_privatizer
from cpgan_ray.models.export import export_programs
from cpgan_ray.models.statistics import refresh_statistics
from cpgan_ray.models.utility_heads import build_head

NUM_LABELS = 17
"""Labels of the procedural faces."""


@dataclass(frozen=True, eq=False)
class MadeBundle:
    """A bundle and the program of its privatizer."""

    bundle: Bundle
    program: bytes
    """The privatizer as a torch.export program: uint8 (B, 3, H, W) -> z (B, k)."""


def draw_pictures(folder: Path, *, number: int, side: int) -> list[Path]:
    """JPEG files of procedural faces, which are drawn into a new folder in a larger size, as preset `faces` draws them."""
    write_faces(
        folder, num_identities=max(3, number), pictures_per_identity=1, size=(max(16, side * 89 // 64), max(16, side * 109 // 64))
    )
    return sorted((folder / "img_align_celeba").glob("*.jpg"))[:number]


def read_pictures(files: Sequence[Path], *, side: int) -> np.ndarray:
    """Pictures as inputs of a privatizer: (N, 3, side, side) uint8."""
    how = Preprocessing(kind="picture", channels=3, height=side, width=side, crop=1.0, dtype="uint8")
    return prepare(list(files), how)


def make_bundle(folder: Path, pictures: np.ndarray, *, seed: int = 0, config: Config | None = None) -> MadeBundle:
    """Write the bundle of untrained networks whose batch norms fit the pictures (N, 3, H, W) uint8, so that codes differ.

    seed: bundles of different seeds have different codes and different answers. config: default preset `faces`.
    """
    config = config or preset("faces")
    channels, height, width = pictures.shape[1:]
    shape = (height, width, channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.ModuleDict(
            {
                "privatizer": build_privatizer(config.privatizer, k=config.k, image_shape=shape),
                "head": build_head(config.utility, k=config.k, num_logits=NUM_LABELS, image_shape=shape),
            }
        )
        x = torch.from_numpy(pictures).float() / 127.5 - 1
        refresh_statistics(net["privatizer"], [x])
        with torch.no_grad():
            z = net["privatizer"](x)
        refresh_statistics(net["head"], [z])
    programs = export_programs(net, k=config.k, image_shape=shape)
    write_folder(folder, _files(programs, z.numpy(), config, shape))
    return MadeBundle(read_bundle(folder), programs["privatizer"])


def _files(programs: Mapping[str, bytes], z: np.ndarray, config: Config, shape: tuple[int, int, int]) -> dict[str, bytes]:
    loaded = {name: torch.export.load(io.BytesIO(content)) for name, content in programs.items()}
    files = {
        CODEC: as_bytes(codec_of(z, step=config.privatizer.quantization_step).as_json()),
        PRIVATIZER: onnx_model(loaded["privatizer"], input_name="pictures", output_name="z", weights="float16"),
        HEAD: onnx_model(loaded["utility_head"], input_name="z", output_name="logits", weights="float32"),
        RUN_REPORT: as_bytes({}),
        BUNDLE_REPORT: as_bytes({}),
    }
    height, width, channels = shape
    how = Preprocessing(kind="picture", channels=channels, height=height, width=width, crop=1.0, dtype="uint8")
    labels = [Label(f"label_{number}", ("0", "1"), number).as_json() for number in range(NUM_LABELS)]
    manifest = {"format": FORMAT, "name": "untrained", "k": config.k, "preprocessing": how.as_json(), "labels": labels}
    return with_manifest(manifest, files)


def as_jpeg(picture: np.ndarray, *, quality: int) -> bytes:
    """A picture (C, H, W) uint8 as JPEG."""
    values = picture.transpose(1, 2, 0)
    Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values).save(buffer := io.BytesIO(), "JPEG", quality=quality)
    return buffer.getvalue()
