"""The prepared store: one Arrow IPC file per split, memory-mapped, so that all processes of a node share one copy.

Columns: `image` (fixed-shape tensor, H x W x C: uint8 pictures or float32 signals), `identity` (int64), then one int8 column per
label: 0/1, or the number of a class. A `manifest.json` next to the files says what they hold, where in the file each column is,
and their SHA-256: what is opened is, byte for byte, what was written (`verify`), and lies inside the file (`map_split`). `build`
writes a store shard by shard: an interrupted build goes on where it stopped, and nothing has the final name before it is
complete.
"""

from cpgan_ray.data.store.dataset import SPLITS, Dataset, Split
from cpgan_ray.data.store.files import checksum, locked, progress_bar
from cpgan_ray.data.store.info import DatasetInfo
from cpgan_ray.data.store.manifest import FORMAT, MANIFEST, Damaged, Manifest, damaged, read_json, read_manifest, sealed
from cpgan_ray.data.store.reading import VERIFIED, checksums, open_store, verify
from cpgan_ray.data.store.writing import Plan, build

__all__ = [
    "FORMAT",
    "MANIFEST",
    "SPLITS",
    "VERIFIED",
    "Damaged",
    "Dataset",
    "Manifest",
    "DatasetInfo",
    "Plan",
    "Split",
    "build",
    "checksum",
    "checksums",
    "damaged",
    "locked",
    "open_store",
    "progress_bar",
    "read_json",
    "read_manifest",
    "sealed",
    "verify",
]
