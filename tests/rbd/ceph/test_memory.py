import re
import subprocess
import sys
from pathlib import Path

_PROGRAM = """
from csi_host_rbd.ceph.memory import release_free_memory
from pathlib import Path
pieces = [bytearray(b"x" * 100_000) for _ in range(1000)]
# What stays keeps the C library from giving back what lies below it by itself.
kept = pieces[::50]
del pieces
print(Path("/proc/self/status").read_text())
release_free_memory()
print(Path("/proc/self/status").read_text())
"""


def test_free_memory_between_what_is_in_use_goes_back_to_the_system() -> None:
    output = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60, check=True, cwd=Path("/")
    ).stdout
    before, after = (int(found) for found in re.findall(r"VmRSS:\s+(\d+) kB", output))
    assert before - after > 50_000
