"""Changing a staged volume's passphrase by the command line."""

import json
import sys
from pathlib import Path

from csi_host.process import ProcessResult, run
from csi_host_rbd.testing.node_kit import Kit

# Also without KVM.
_SECONDS = 300.0


def rotate(kit: Kit, directory: Path) -> ProcessResult:
    """Call ``csi-host rbd rotate-key`` with the files of the node in ``directory``; return how it ended."""
    files = {
        "cephcsiconfig": "config.json",
        "clustermapping": "mapping.json",
        "kmsconfig": "kms.json",
        "qemudirectory": "qemu",
        "cephconf": "none",
    }
    program = str(Path(sys.executable).with_name("csi-host"))
    argv = [program, "rbd", "rotate-key", "--volume-id", kit.volume.volume_id]
    argv += ["--secret-file", "-", *(f"--{name}={directory / file}" for name, file in files.items())]
    return run(argv, timeout=_SECONDS, ok_codes=range(256), stdin=json.dumps(kit.rig.secrets))
