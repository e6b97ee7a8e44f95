"""Bundles of small, untrained networks, for tests of what reads and uses them."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cpgan_ray.common.codec import codec_of
from cpgan_ray.config import PrivatizerConfig, UtilityConfig
from cpgan_ray.deploy.bundle import BUNDLE_REPORT, CODEC, HEAD, PRIVATIZER, RUN_REPORT, Bundle
from cpgan_ray.deploy.manifest import FORMAT, Label, Preprocessing
from cpgan_ray.deploy.onnx_export import onnx_model
from cpgan_ray.deploy.writing import as_bytes, with_manifest
from cpgan_ray.models.building import build_privatizer
from cpgan_ray.models.export import export_programs
from cpgan_ray.models.utility_heads import build_head

SIDE, K, STEP = 16, 8, 0.5
LABELS = (Label("Male", ("0", "1"), 0), Label("Hair", ("black", "brown", "grey"), 1), Label("Smiling", ("no", "yes"), 4))
PREPROCESSING = Preprocessing(kind="picture", channels=3, height=SIDE, width=SIDE, crop=0.8, dtype="uint8")


def smooth_pictures(count: int, shape: tuple[int, int, int], *, seed: int) -> np.ndarray:
    """Pictures (count, C, H, W) uint8 of large spots, whose codes differ much more than those of white noise."""
    rng = np.random.default_rng(seed)
    channels, height, width = shape
    coarse = torch.from_numpy(rng.normal(size=(count, channels, 3, 3)).astype(np.float32))
    spots = nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    light = torch.from_numpy(rng.normal(size=(count, 1, 1, 1)).astype(np.float32))
    return (127.5 + 50 * (spots + light)).clamp(0, 255).numpy().astype(np.uint8)


def contents(*, seed: int = 0, **changes: Any) -> dict[str, bytes]:
    """The files of a bundle; changes: fields of the manifest."""
    torch.manual_seed(seed)
    shape = (SIDE, SIDE, 3)
    net = nn.ModuleDict(
        {
            "privatizer": build_privatizer(PrivatizerConfig(width=4, depth=2, quantization_step=STEP), k=K, image_shape=shape),
            "head": build_head(UtilityConfig(hidden=8), k=K, num_logits=LABELS[-1].logits.stop, image_shape=shape),
        }
    )
    pictures = smooth_pictures(64, (3, SIDE, SIDE), seed=seed)
    with torch.no_grad():
        for _ in range(40):  # the statistics of its batch norms approach those of the pictures
            net["privatizer"](torch.from_numpy(pictures).float() / 127.5 - 1)
        z = net["privatizer"].eval()(torch.from_numpy(pictures).float() / 127.5 - 1).numpy()
    programs = {name: torch.export.load(io.BytesIO(p)) for name, p in export_programs(net, k=K, image_shape=shape).items()}
    files = {
        CODEC: as_bytes(codec_of(z, step=STEP).as_json()),
        PRIVATIZER: onnx_model(programs["privatizer"], input_name="pictures", output_name="z", weights="float32"),
        HEAD: onnx_model(programs["utility_head"], input_name="z", output_name="logits", weights="float32"),
        RUN_REPORT: as_bytes({}),
        BUNDLE_REPORT: as_bytes({}),
    }
    return with_manifest(manifest_values() | changes, files)


def manifest_values() -> dict[str, Any]:
    labels = [label.as_json() for label in LABELS]
    return {"format": FORMAT, "name": "small", "k": K, "preprocessing": PREPROCESSING.as_json(), "labels": labels}


def remake(files: Mapping[str, bytes], **changes: Any) -> dict[str, bytes]:
    """The same files with a manifest that fits them; changes: fields of the manifest."""
    return with_manifest(manifest_values() | changes, {name: content for name, content in files.items() if name != "manifest.json"})


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def expected_logits(bundle: Bundle, z: np.ndarray) -> np.ndarray:
    """The logits of the bundle's utility head (N, L), by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(bundle.files[HEAD], providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"z": z})
    return np.asarray(logits)
