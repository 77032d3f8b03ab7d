"""Where a measurement was made: it says nothing without."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

from csi_host.process import ProcessError, run

_SECONDS = 20.0
_REPOSITORY = Path(__file__).parents[3]


def environment() -> dict[str, str]:
    """Return what has to stand beside the figures, by name."""
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "Ceph": _output("ceph", "--version").partition("(")[0].strip(),
        "Python": platform.python_version(),
        "grpcio": version("grpcio"),
        "protobuf": version("protobuf"),
        "commit": _commit(),
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _commit() -> str:
    head = _output("git", "-C", str(_REPOSITORY), "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "-C", str(_REPOSITORY), "status", "--porcelain")
    return (f"{head}, with changes" if changed else head) or "unknown"


def _output(*argv: str) -> str:
    try:
        return run(argv, timeout=_SECONDS).stdout.strip()
    except ProcessError:
        return ""
