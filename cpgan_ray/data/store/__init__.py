"""The prepared store: one Arrow IPC file per split, memory-mapped, so that all processes of a node share one copy.

Columns: `image` (fixed-shape tensor, H x W x C: uint8 pictures or float32 signals), `identity` (int64), then one int8 column per
label: 0/1, or the number of a class, or -1 (`MISSING`) if the true answer is not known. A `manifest.json` next to the files lists
their contents, the position of each column in its file, and their SHA-256. Opening a store checks that the files are unchanged
(`verify`) and that every column lies inside its file (`map_split`). `build` writes a store shard by shard: an interrupted build
continues where it stopped, and the folder gets its final name only when it is complete.
"""

from cpgan_ray.data.store.dataset import ATTACKER, SPLITS, Dataset, Split, withhold
from cpgan_ray.data.store.files import checksum, folder_lock, progress_bar
from cpgan_ray.data.store.info import MISSING, DatasetInfo, Landmarks
from cpgan_ray.data.store.manifest import (
    FORMAT,
    MANIFEST,
    DamagedStoreError,
    Manifest,
    damaged_store,
    manifest_text,
    read_json,
    read_manifest,
)
from cpgan_ray.data.store.reading import VERIFIED, checksums, open_store, verify
from cpgan_ray.data.store.writing import Plan, build

__all__ = [
    "ATTACKER",
    "FORMAT",
    "MANIFEST",
    "MISSING",
    "SPLITS",
    "VERIFIED",
    "DamagedStoreError",
    "Dataset",
    "Manifest",
    "DatasetInfo",
    "Landmarks",
    "Plan",
    "Split",
    "build",
    "checksum",
    "checksums",
    "damaged_store",
    "folder_lock",
    "open_store",
    "progress_bar",
    "read_json",
    "read_manifest",
    "manifest_text",
    "verify",
    "withhold",
]
