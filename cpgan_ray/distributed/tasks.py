"""Independent work as Ray tasks: the attacks of a tournament, the cells of a comparison."""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import RayTaskError

from cpgan_ray.common.credentials import export_env, import_env
from cpgan_ray.common.process import pick_device, set_up_process
from cpgan_ray.common.signals import requested
from cpgan_ray.config import RuntimeConfig
from cpgan_ray.distributed.cluster import connect, is_local
from cpgan_ray.distributed.resources import Bundle, CapacityWaiter, ensure_capacity
from cpgan_ray.errors import InputError
from cpgan_ray.evaluation.fitting import AttackSpec, EvaluationContext, FittedAttack, fit_attack

T = TypeVar("T")


def attack_task(spec: AttackSpec, context: EvaluationContext, *, runtime: RuntimeConfig) -> FittedAttack:
    """Fits one attack in a Ray worker; the fitted attack is returned on the CPU."""
    cpus, gpus = context.config.cpus, context.config.gpus
    set_up_process(threads=runtime.threads or max(1, int(cpus)), gpu_share=gpus)
    device = pick_device(runtime.device)
    fitted = fit_attack(spec, context, device=device)
    if device.type == "cpu":
        return fitted
    torch.save(fitted, buffer := io.BytesIO())
    buffer.seek(0)
    return torch.load(buffer, map_location="cpu", weights_only=False)  # bytes written by this function


def fit_on_ray(
    todo: Sequence[AttackSpec], context: EvaluationContext, *, runtime: RuntimeConfig, done: Callable[[FittedAttack], None]
) -> list[FittedAttack]:
    """Fits all attacks as Ray tasks, in parallel as far as the cluster's resources allow. Returns them in the order of `todo`.

    Raises: InputError with the numbers if the cluster is too small for one attack; an attack's own error without Ray's wrapping.
    """
    connect(runtime)
    config = context.config
    size: Bundle = {"CPU": config.cpus, "GPU": config.gpus}
    waiter = CapacityWaiter([size], option="runtime.startup_timeout_s", timeout_s=runtime.startup_timeout_s)
    while lacking := [kind for kind, amount in size.items() if amount > ray.cluster_resources().get(kind, 0.0)]:
        if runtime.startup_timeout_s == 0:
            available, flag = ray.cluster_resources().get(lacking[0], 0.0), f"--attacks.{lacking[0].lower()}s"
            raise InputError(f"an attack needs {size[lacking[0]]:g} {lacking[0]}s, the cluster has {available:g}: lower {flag}")
        waiter.report_shortage()
        time.sleep(1)
    shared = ray.put(context)
    task: Any = ray.remote(attack_task).options(num_cpus=config.cpus, num_gpus=config.gpus, max_retries=2)  # pyright: ignore
    references = [task.remote(spec, shared, runtime=runtime) for spec in todo]
    return gather_in_order(references, done=lambda index, fitted: done(fitted))


def gather_in_order(references: Sequence[Any], *, done: Callable[[int, Any], None]) -> list[Any]:
    """The results of tasks, in the order of `references`. `done` is called with index and result of each task as it ends. The tasks
    that are left when it raises, or when one of them fails, are cancelled.

    Raises: what a task raised, without Ray's wrapping.
    """
    indices = {reference: i for i, reference in enumerate(references)}
    results: dict[int, Any] = {}
    waiting = list(references)
    try:
        while waiting:
            (ready, *_), waiting = ray.wait(waiting, num_returns=1)
            index = indices[ready]
            results[index] = ray.get(ready)
            done(index, results[index])
    except RayTaskError as e:
        raise e.cause from e
    finally:
        if not (requested() and is_local()):  # a local cluster ends with this process; Ray may crash on a task that ends meanwhile
            for reference in waiting:
                ray.cancel(reference, force=True)
    return [results[i] for i in range(len(references))]


def with_environment(environment: Mapping[str, str], work: Callable[..., T], arguments: Sequence[Any]) -> T:
    """Calls `work(*arguments)` after setting the environment variables that may be needed to reach the data."""
    import_env(environment)
    return work(*arguments)


def run_in_tasks(
    work: Callable[..., T],
    todo: Sequence[Sequence[Any]],
    *,
    runtime: RuntimeConfig,
    cpus: float,
    gpus: float,
    done: Callable[[int, T], None],
) -> list[T]:
    """Calls `work(*arguments)` for each item of `todo` as Ray tasks, in parallel as far as the cluster's resources allow. Returns
    the results in the order of `todo`; `done` is called with index and result of each item as it ends. A task whose process dies is
    repeated.

    Raises: InputError with the numbers if the cluster is too small for one task; a task's own error without Ray's wrapping.
    """
    ensure_capacity([{"CPU": cpus, "GPU": gpus}], ray.cluster_resources(), runtime)
    task: Any = ray.remote(with_environment).options(num_cpus=cpus, num_gpus=gpus, max_retries=2)  # pyright: ignore
    references = [task.remote(export_env(), work, arguments) for arguments in todo]
    return gather_in_order(references, done=done)
