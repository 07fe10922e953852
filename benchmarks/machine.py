"""What it was measured on."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil


def facts() -> dict[str, str]:
    """Cores, processor, memory, system and Python."""
    return {
        "cores": str(psutil.cpu_count()),
        "CPU": _cpu(),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
