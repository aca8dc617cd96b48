"""The platform "cpu" for veRL (``VERL_PLATFORM=cpu``), registered through veRL's platform registry."""

import os
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _zero(*args: Any, **kwargs: Any) -> int:
    return 0


def _memory(*args: Any) -> tuple[int, int]:
    """Free and total main memory in bytes."""
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page


_NOTHING = ("empty_cache", "ipc_collect", "reset_peak_memory_stats")
_ZERO = (
    "max_memory_allocated",
    "max_memory_reserved",
    "memory_allocated",
    "memory_reserved",
    "current_device",
)


def _device_module() -> types.ModuleType:
    """``torch.cpu`` with the calls of ``torch.cuda`` that veRL makes: memory questions are answered with
    0.
    """
    module = types.ModuleType("research_cpu_device")
    names = [name for name in dir(torch.cpu) if not name.startswith("__")]
    module.__dict__.update({name: getattr(torch.cpu, name) for name in names})
    module.__dict__.update(dict.fromkeys(_NOTHING, _nothing) | dict.fromkeys(_ZERO, _zero))
    module.__dict__.update(
        mem_get_info=_memory,
        get_device_name=lambda *args: "CPU",
        is_available=lambda: True,
        device_count=lambda: 1,
        manual_seed=torch.manual_seed,
        manual_seed_all=torch.manual_seed,
        get_rng_state=lambda *args: torch.get_rng_state(),
        set_rng_state=lambda state, *args: torch.set_rng_state(state),
    )
    return module


_MODULE = _device_module()


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """One logical accelerator a Ray node, which is the CPU."""

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> types.ModuleType:
        return _MODULE

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        # Never chosen by detection: a GPU machine whose driver is broken must say so, not train on its CPU.
        return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"

    def current_device(self) -> Any:
        # veRL joins this to the device name ("cuda:0") or takes it as a device; torch knows no "cpu:cpu" but
        # "cpu".
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        return None

    def synchronize(self, device_index: int | None = None) -> None:
        return None

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        return None

    def empty_cache(self) -> None:
        return None

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        return None

    def profiler_stop(self) -> None:
        return None

    def ray_resource_name(self) -> str:
        # Ray hands this resource out by number; the recipe declares it with num_gpus=1.
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        # Weights travel through shared memory.
        return False

    def cudart(self) -> Any:
        return None
