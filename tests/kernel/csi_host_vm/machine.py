"""A virtual machine on this machine's own files, with Debian's kernel and its real modules; it needs no KVM.

virtme-ng boots it. The files are this machine's, read-only or with changes that are forgotten; one directory is shared
for writing. Without KVM everything in it takes five to ten times as long, so what need not be inside stays outside: the
Ceph cluster, which it reaches at the same addresses (`_INSIDE`), and Ceph's slow command line tools (`hands`).

Whatever becomes of who started it, the machine ends: its processes are in a process namespace that the kernel takes
down together with the thread that asked for it. What it says on its console is kept: a crash has last words.
"""

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

# The environment variable that says to a program that it runs inside; its value is the shared directory.
INSIDE = "CSI_HOST_VM"
SHARE = Path("/run/csi-host-vm")
# Where this package is found.
MODULES_DIRECTORY = str(Path(__file__).parents[1])
_CPUS = 2
_MEMORY = "3G"
_MODULES = ("drivers/block/rbd", "drivers/block/nbd", "drivers/md/dm-crypt", "drivers/net/virtio_net")
_PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "nft": "nftables",
    "ip": "iproute2",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "rbd": "ceph-common",
    "rbd-nbd": "rbd-nbd",
    "cryptsetup": "cryptsetup-bin",
}
# Without the kernel's defences against other tenants every system call is twice as fast where there is no KVM.
_KERNEL = "mitigations=off apparmor=0 audit=0"
# A second export of the files: virtme-ng's own is read anew at every access.
_QEMU = (
    "-virtfs local,path=/,mount_tag=files,security_model=none,readonly=on,multidevs=remap "
    "-nic user,model=virtio-net-pci"
)

# 10.0.2.2 is the machine outside, at its 127.0.0.1. Its Ceph tells everybody that it is at 127.0.0.1, and so it seems;
# not where Ceph is to run inside.
_INSIDE = """\
mkdir -p "$HOME" "$TMPDIR" /run/files
mount -t 9p -o ro,version=9p2000.L,trans=virtio,cache=loose,msize=512000 files /run/files
umount -l /usr
mount --bind /run/files/usr /usr
mount --bind "/run/files$CHECKOUT" "$CHECKOUT"
cd "$CHECKOUT"
for module in rbd nbd dm-crypt loop virtio_net nft_chain_nat; do modprobe $module; done
network=$(basename $(echo /sys/bus/virtio/drivers/virtio_net/virtio*/net/*))
ip address add 10.0.2.15/24 dev $network
ip link set $network up
echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet
test -n "$NODE_CEPH_INSIDE" || nft -f - <<end
table ip outside {
  chain going { type nat hook output priority -100; ip daddr 127.0.0.1 tcp dport 1024-65535 dnat to 10.0.2.2; }
  chain gone { type nat hook postrouting priority 100; oifname "$network" masquerade; }
}
end
"""


class CannotBootError(Exception):
    """The machine cannot be had here; the message says what is missing, and in which Debian package it is."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel that is installed here, with its modules."""

    image: Path

    @classmethod
    def newest(cls) -> Self:
        """Return the newest kernel that has all the modules; raises CannotBootError."""
        for image in sorted(Path("/boot").glob("vmlinuz-*"), key=lambda path: path.stat().st_mtime, reverse=True):
            modules = Path("/lib/modules", image.name.removeprefix("vmlinuz-"), "kernel")
            if all(any(modules.glob(f"{module}.ko*")) for module in _MODULES):
                return cls(image=image)
        raise CannotBootError("a kernel in /boot with rbd, nbd and dm-crypt (package linux-image-amd64)")


def missing() -> list[str]:
    """Return what a machine needs and is not here, in words for a person."""
    found = [f"{name} (package {package})" for name, package in _PROGRAMS.items() if shutil.which(name) is None]
    if not _vng().exists():
        found.append("virtme-ng (make setup)")
    if os.geteuid() != 0:
        found.append("root")
    try:
        Kernel.newest()
    except CannotBootError as error:
        found.append(str(error))
    return found


def boot(command: str, *, share: Path, has_terminal: bool = False) -> "subprocess.Popen[bytes]":
    """Start a machine that runs ``command`` in the checkout with a shell, and ends; it may write to ``share`` only.

    What the kernel and the command print comes out of the returned process, which ends with the command's exit code;
    with ``has_terminal`` they have this process's. It is killed with the thread that calls this. Raises
    CannotBootError.
    """
    if lacking := missing():
        raise CannotBootError(f"a virtual machine needs: {', '.join(lacking)}")
    (share / "command").write_text(_script(command), encoding="utf-8")
    vng = [
        *(str(_vng()), "--run", str(Kernel.newest().image), "--disable-kvm", "--force-9p", "--verbose"),
        *("--cpus", str(_CPUS), "--memory", _MEMORY, f"--rwdir={SHARE}={share}"),
        *(f"--append={_KERNEL}", f"--qemu-opts={_QEMU}"),
        *("--", shlex.join(["sh", str(SHARE / "command")])),
    ]
    # The kernel kills unshare with this thread, and with unshare everything in its process namespace.
    keeper = ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "--"]
    # A pipe, as qemu opens what it prints to anew, and would cut a file off.
    return subprocess.Popen(
        [*keeper, *vng],
        stdin=None if has_terminal else subprocess.DEVNULL,
        stdout=None if has_terminal else subprocess.PIPE,
        stderr=None if has_terminal else subprocess.STDOUT,
        start_new_session=not has_terminal,
        # vng starts virtme-run, its neighbour, by name.
        env={**os.environ, "PATH": f"{_vng().parent}:{os.environ['PATH']}"},
    )


def _vng() -> Path:
    return Path(sys.executable).with_name("vng")


def _script(command: str) -> str:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "/run/home",
        "TMPDIR": "/run/t",
        "CI": os.environ.get("CI", ""),
        "PYTHONPATH": MODULES_DIRECTORY,
        "PYTHONDONTWRITEBYTECODE": "1",
        "CHECKOUT": str(Path.cwd()),
        # For csi_host_rbd.testing: the deadline of a call.
        "CSI_HOST_TEST_CALL_SECONDS": "300",
        # What says how much the tests do.
        "NODE_CEPH_INSIDE": "",
        **{name: value for name, value in os.environ.items() if name.startswith("NODE_")},
        INSIDE: str(SHARE),
    }
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
    return f"{exports}{_INSIDE}{command}\n"
