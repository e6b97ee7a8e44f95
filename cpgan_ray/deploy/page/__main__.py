"""Get onnxruntime-web beforehand. Prints the folder with its files."""

import sys

from cpgan_ray.deploy.page.runtime import fetch_runtime, runtime_folder
from cpgan_ray.errors import InputError


def main() -> None:
    try:
        fetch_runtime()
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    print(runtime_folder())


if __name__ == "__main__":
    main()
