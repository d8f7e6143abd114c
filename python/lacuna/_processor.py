# SPDX-License-Identifier: Apache-2.0
"""One clear line on a processor that is too old; the compiled module would stop the whole program there."""
from __future__ import annotations

NEEDED = ("avx2", "fma", "f16c", "bmi1", "bmi2")


def missing(cpuinfo: str) -> list[str]:
    """What the first processor of /proc/cpuinfo lacks."""
    flags = next((line.split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])
    return [flag for flag in NEEDED if flag not in flags]


def check() -> None:
    """Raises ImportError on a processor below x86-64-v3."""
    with open("/proc/cpuinfo") as file:
        lacking = missing(file.read())
    if lacking:
        raise ImportError(f"lacuna: this processor lacks {', '.join(lacking)}, expected {', '.join(NEEDED)} (x86-64-v3)")
