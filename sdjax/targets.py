"""Devices that programs can be compiled for without having them, by name.

libtpu, XLA's compiler for TPUs, and that for CUDA need a description of the device, not the device.
"""

import os
from dataclasses import dataclass
from importlib.util import find_spec

import jax

from sdjax.errors import InputError

GIB = 2**30
# What libtpu would ask a TPU's host for; and more than one process may use it, since none has a device.
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
}
COMPILERS = {"tpu": ("libtpu",), "cuda": ("jax_cuda12_plugin", "jax_cuda13_plugin")}  # modules, of which one is needed


@dataclass(frozen=True)
class Target:
    """A kind of machine: the bytes of one of its devices that programs can use, and how XLA is told of them."""

    platform: str
    memory: int
    topology: str
    hosts: tuple[int, int, int] = (1, 1, 1)  # chips of one host, along each axis
    config: str = ""  # of a GPU
    clock: float = 0.0  # cycles a second, of which a TPU's compiler estimates how many a program takes
    peak: float = 0.0  # operations a second of bfloat16 products, as published


def _nvidia(name: str, cores: int, memory: int, bandwidth: int) -> str:
    """How XLA describes a GPU of compute capability 9.0; its own files of such descriptions are `gpu_specs`."""
    return f"""gpu_device_info {{
      threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
      shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: 128
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      memory_bandwidth: {bandwidth} l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: {memory}
      shared_memory_per_block_optin: 232448 cuda_compute_capability {{ major: 9 }}
      registers_per_core_limit: 65536 registers_per_block_limit: 65536 }}
    platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 12 }} runtime_version {{ major: 13 }}
    device_description_str: "{name}" """


V5E_MEMORY, V6E_MEMORY = 16 * GIB - GIB // 4, 32 * GIB - 3 * GIB // 4  # the compiler's own limits
V5E_PEAK, V6E_PEAK = 197e12, 918e12
V5E, V6E = 1.5e9, 1.75e9  # the peaks over the operations of a cycle
TARGETS = {
    "v5e-1": Target("tpu", V5E_MEMORY, "v5e:1x1", clock=V5E, peak=V5E_PEAK),
    "v5e-4": Target("tpu", V5E_MEMORY, "v5e:2x2", (2, 2, 1), clock=V5E, peak=V5E_PEAK),
    "v5e-8": Target("tpu", V5E_MEMORY, "v5e:2x4", (2, 2, 1), clock=V5E, peak=V5E_PEAK),
    "v6e-1": Target("tpu", V6E_MEMORY, "v6e:1x1", clock=V6E, peak=V6E_PEAK),
    "v6e-4": Target("tpu", V6E_MEMORY, "v6e:2x2", (2, 2, 1), clock=V6E, peak=V6E_PEAK),
    "v6e-8": Target("tpu", V6E_MEMORY, "v6e:2x4", (2, 2, 1), clock=V6E, peak=V6E_PEAK),
    "h100": Target("cuda", 80 * GIB, "1x1x1", config=_nvidia("NVIDIA H100", 132, 80 * GIB, 3_350_000_000_000)),
    "h200": Target("cuda", 141 * 10**9, "1x1x1", config=_nvidia("NVIDIA H200", 132, 141 * 10**9, 4_800_000_000_000)),
}


def check_target(name: str) -> Target:
    """The target of a name. Raises InputError for one that is not known, or whose compiler is not installed."""
    if name not in TARGETS:
        raise InputError(f"unknown target {name!r}; known: {', '.join(TARGETS)}")
    target = TARGETS[name]
    if not any(map(find_spec, COMPILERS[target.platform])):
        raise InputError(
            f"compiling for {name} takes the compiler for {target.platform.upper()}s, though none of the devices: "
            f'pip install "sdjax[{target.platform}]"'
        )
    return target


def describe(name: str) -> tuple[jax.Device, ...]:
    """The devices of a target, for `target_devices`.

    This process must not have used a TPU or GPU before, and uses none after. Raises InputError as `check_target` does,
    and where the installed compiler does not know such a device.
    """
    from jax.experimental import topologies  # slow to import

    target = check_target(name)
    jax.config.update("jax_platforms", "cpu")
    try:
        if target.platform == "tpu":
            os.environ |= {**NO_TPU, **os.environ}
            found = topologies.get_topology_desc(
                platform="tpu", topology_name=target.topology, chips_per_host_bounds=target.hosts
            )
        else:
            found = topologies.get_topology_desc(platform="cuda", topology=target.topology, target_config=target.config)
    except Exception as error:  # whatever the compiler's plugin raises
        versions = f"jax {jax.__version__}"
        raise InputError(f"the compiler that is installed beside {versions} cannot describe {name}: {error}") from error
    return tuple(found.devices)
