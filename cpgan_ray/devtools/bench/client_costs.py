"""Bytes of a picture on the wire, and the client's CPU time for a picture, next to the usual alternatives."""

import io
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpgan_ray.deploy.bundle import Bundle
from cpgan_ray.deploy.client import MAX_CODES, Client
from cpgan_ray.deploy.message import HEADER
from cpgan_ray.deploy.preprocessing import prepare
from cpgan_ray.devtools.serving.made_bundle import MadeBundle, as_jpeg, read_pictures

JPEG_QUALITY = 75
TURNS, TURN_S, BATCH = 9, 0.1, 32
"""Turns and CPU seconds of each measurement of the client, and the larger one of its batches."""


def measure_bytes(bundle: Bundle, files: Sequence[Path]) -> dict[str, Any]:
    """Bytes of a picture: as JPEG in the privatizer's size, as float32 z, as a message of its own (`bytes_code`: without its
    header), and in messages of 256 codes. `bytes_stated` is what the bundle states of its own test pictures."""
    names = [str(file) for file in files]
    jpeg = [len(as_jpeg(picture, quality=JPEG_QUALITY)) for picture in prepare([*files], bundle.manifest.preprocessing)]
    with Client(bundle) as client:
        alone = float(np.mean([len(client.encode([name])) for name in names]))
        batches = [len(client.encode(names[start : start + MAX_CODES])) for start in range(0, len(names), MAX_CODES)]
    stated = bundle.manifest.values.get("bytes", {}).get("range_mean")
    return {
        "bytes_jpeg": float(np.mean(jpeg)),
        "bytes_float_z": 4 * bundle.manifest.k,
        "bytes_message": alone,
        "bytes_code": alone - HEADER.size,
        "bytes_in_batch": sum(batches) / len(names),
        "bytes_stated": stated,
    }


def measure_client(made: MadeBundle, files: Sequence[Path]) -> dict[str, float]:
    """CPU milliseconds a picture with one thread, medians over turns: the client with onnxruntime and the same program in torch,
    for pixels of one picture (`b1`) and of 32 at a time (`b32`); and the client from a JPEG file to a message."""
    torch.set_num_threads(1)
    pictures = read_pictures(files, side=made.bundle.manifest.preprocessing.height)
    module = torch.export.load(io.BytesIO(made.program)).module()
    with Client(made.bundle) as client, torch.no_grad():
        work: dict[str, tuple[Callable[[int], Any], int]] = {
            "client_file_ms": (lambda i: client.encode([str(files[i % len(files)])]), 1)
        }
        for size in (1, BATCH):
            blocks = [pictures[start : start + size] for start in range(0, len(pictures) - size + 1, size)]
            lists, tensors = [list(block) for block in blocks], [torch.from_numpy(block) for block in blocks]
            work[f"client_ms_b{size}"] = (lambda i, lists=lists: client.codes(lists[i % len(lists)]), size)
            work[f"torch_ms_b{size}"] = (lambda i, tensors=tensors: module(tensors[i % len(tensors)]), size)
        return {name: 1e3 * seconds for name, seconds in median_cpu_seconds(work).items()}


def median_cpu_seconds(work: Mapping[str, tuple[Callable[[int], Any], int]]) -> dict[str, float]:
    """CPU seconds of each call, divided by its number of pictures: the median of turns, which all calls take one after the other.
    Other processes hardly change them, and with one thread on an idle machine they are the seconds that pass."""
    turns: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(TURNS):
        for name, (call, size) in work.items():
            begun, count = time.process_time(), 0
            while (passed := time.process_time() - begun) < TURN_S or count == 0:
                call(count)
                count += 1
            turns[name].append(passed / (count * size))
    return {name: statistics.median(values) for name, values in turns.items()}
