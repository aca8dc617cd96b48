"""The platform "cpu" for veRL (``VERL_PLATFORM=cpu``), registered through veRL's platform registry."""

import os
import types
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


def _always(value: Any) -> Callable[..., Any]:
    """A method that returns this, whatever it is given."""
    return lambda *args, **kwargs: value


class _Device(types.ModuleType):
    """``torch.cpu`` with the calls of ``torch.cuda`` that veRL makes; allocated memory is always 0."""

    empty_cache = ipc_collect = reset_peak_memory_stats = _always(None)
    memory_allocated = memory_reserved = max_memory_allocated = max_memory_reserved = _always(0)
    current_device, device_count = _always(0), _always(1)
    is_available, get_device_name = _always(True), _always("CPU")
    manual_seed = manual_seed_all = staticmethod(torch.manual_seed)
    get_rng_state = staticmethod(lambda *args: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, *args: torch.set_rng_state(state))

    @staticmethod
    def mem_get_info(*args: Any) -> tuple[int, int]:
        """Free and total main memory in bytes."""
        page = os.sysconf("SC_PAGE_SIZE")
        return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """One logical accelerator per Ray node, which is the CPU."""

    device_name = vendor_name = "cpu"
    device_module = _Device("research_cpu_device")
    set_device = synchronize = set_allocator_settings = empty_cache = _always(None)
    profiler_start = profiler_stop = cudart = _always(None)
    is_available, device_count = _always(True), _always(1)
    # veRL joins this to the device name ("cuda:0") or takes it as a device; torch knows no "cpu:cpu".
    current_device = _always("cpu")
    manual_seed = manual_seed_all = staticmethod(torch.manual_seed)
    get_device_capability = _always((None, None))
    communication_backend_name = _always("gloo")
    visible_devices_envvar = _always("CUDA_VISIBLE_DEVICES")
    nvtx_range = _always(nullcontext())
    # Ray hands this resource out by number; the recipe declares it with num_gpus=1.
    ray_resource_name = _always("GPU")
    ray_noset_envvars = _always(["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"])
    is_ipc_supported = _always(False)  # weights travel through shared memory

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        # Never chosen by detection: a GPU machine with a broken driver must say so, not train on its CPU.
        return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"
