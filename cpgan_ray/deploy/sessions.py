"""The models of a bundle, ready to run in onnxruntime on the CPU."""

import os

import onnxruntime

from cpgan_ray.deploy.bundle import EVE, PRIVATIZER, TWIN_EVE, TWIN_PRIVATIZER, Bundle
from cpgan_ray.errors import InputError


def open_session(bundle: Bundle, name: str, *, threads: int = 1) -> onnxruntime.InferenceSession:
    """A model of a bundle, ready to run on the CPU.

    Raises: InputError if it cannot be loaded, or if its input and output are not those that the manifest states.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    # A model is one file: weights in other files would be read from this machine.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    # Without a fallback: onnxruntime would try a damaged model twice, and print the reason on standard output.
    try:
        session = onnxruntime.InferenceSession(bundle.files[name], options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as e:  # onnxruntime raises many types for a damaged model
        raise InputError(f"bundle {bundle.path}: {name} cannot be loaded ({type(e).__name__}): get it from its author again") from e
    manifest = bundle.manifest
    kind, shape = "tensor(uint8)" if manifest.preprocessing.dtype == "uint8" else "tensor(float)", manifest.preprocessing.shape
    encoder, attack = (kind, shape, (manifest.k,)), ("tensor(float)", (manifest.k,), shape)
    ends = {PRIVATIZER: encoder, TWIN_PRIVATIZER: encoder, EVE: attack, TWIN_EVE: attack}
    kind, takes, returns = ends.get(name, ("tensor(float)", (manifest.k,), (manifest.num_logits,)))
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if (
        len(inputs) != 1
        or len(outputs) != 1
        or (inputs[0].type, tuple(inputs[0].shape[1:])) != (kind, takes)
        or (outputs[0].type, tuple(outputs[0].shape[1:])) != ("tensor(float)", returns)
    ):
        raise InputError(f"bundle {bundle.path}: {name} does not take {takes} and return {returns}, as the manifest states")
    return session
