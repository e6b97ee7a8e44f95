"""The programs of a run as ONNX models."""

from pathlib import Path

from cpgan_ray.common.ownership import is_own, sign
from cpgan_ray.config.folders.targets import Target
from cpgan_ray.deploy.bundle import HEAD, PRIVATIZER
from cpgan_ray.deploy.onnx_export import Weights, onnx_model
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.encoders.programs import Unsafe, load_program


def ensure_own(target: Target, *, trust: bool) -> None:
    """Check that the programs of a run are this user's own: they are converted in this process, without a sandbox.

    Raises: InputError if another user has written one, or the run has no utility head.
    """
    if target.head is None:
        raise InputError(f"{target.name} has no utility_head.pt2: give a run that was trained with this version")
    for path in filter(None, (target.program, target.head)):
        if not (trust or is_own(path)):
            raise InputError(f"{path} was written by another user: export it only if you trust its author, with --trust")


def write_models(target: Target, folder: Path, *, weights: Weights) -> dict[str, Path]:
    """Convert both programs, and write the models to a folder. They are signed, so that they are run without a sandbox.

    weights: how the privatizer's weights are stored; the utility head's are float32.

    Raises: InputError if a program is damaged, or ONNX does not have one of its operators.
    """
    assert target.program is not None and target.head is not None
    parts: dict[str, tuple[Path, str, str, Weights]] = {
        PRIVATIZER: (target.program, "pictures", "z", weights),
        HEAD: (target.head, "z", "logits", "float32"),
    }
    paths: dict[str, Path] = {}
    for name, (program, takes, returns, stored) in parts.items():
        content = convert(program, input_name=takes, output_name=returns, weights=stored)
        paths[name] = folder / name
        paths[name].write_bytes(content)
        sign(paths[name])
    return paths


def convert(program: Path, *, input_name: str, output_name: str, weights: Weights) -> bytes:
    """The ONNX model of a torch.export program in a file.

    Raises: InputError if it is damaged, draws random numbers, or ONNX does not have one of its operators.
    """
    try:
        loaded = load_program(program, any_operation=True)
    except Unsafe as e:
        raise InputError(f"{program} cannot be exported: {e}") from e
    except Exception as e:  # torch may raise any exception for a damaged file
        raise InputError(f"{program} is damaged ({type(e).__name__}): train that run again") from e
    try:
        return onnx_model(loaded, input_name=input_name, output_name=output_name, weights=weights)
    except RuntimeError as e:
        raise InputError(f"{program} cannot be exported: {e}: train with another family of networks") from e
