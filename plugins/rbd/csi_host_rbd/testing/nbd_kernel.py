"""A made-up kernel with network block devices, and an image to be one of them; the real one is in tests/kernel."""

from pathlib import Path

from csi_host.testing.runner import Answer, Command, ScriptedRunner
from csi_host_rbd.attach.attacher import AttachRequest, ImageSpec
from csi_host_rbd.attach.client import RbdClient
from csi_host_rbd.attach.kept_requests import KeptRequests
from csi_host_rbd.attach.nbd import NbdAttacher

KEY = "AQA6fAFrwncNExAAd7IMxMF/byzrFzmGtkQFIw=="
SPEC = ImageSpec(cluster_id="ceph-a", pool="rbd", image="one", namespace="tenant", volume_id="v1")
REQUEST = AttachRequest(spec=SPEC, mon_host="10.0.0.1:6789", user="csi", key=KEY)
DEVICE = "/dev/nbd900"


class NbdKernel:
    """A /sys and a /proc in which ``rbd-nbd`` maps, attaches and unmaps."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.proc = root / "proc"
        (self.proc / "self/ns").mkdir(parents=True)
        self.number_pids("pid:[4026531836]")
        (root / "block").mkdir()
        (root / "module/nbd").mkdir(parents=True)
        self.run = ScriptedRunner({"rbd-nbd": self.rbd_nbd, "blockdev": Answer(), "rbd": Answer()})
        self.kept = KeptRequests()
        self.pids = 100
        self.sizes_told: list[tuple[int, int, str]] = []

    def attacher(self, kept: KeptRequests | None = None) -> NbdAttacher:
        """Return an attacher on this kernel; ``kept`` takes the place of the kernel's own."""
        return NbdAttacher(
            run=self.run,
            client=RbdClient(run=self.run),
            kept=kept or self.kept,
            sysfs=self.root,
            proc=self.proc,
            sockets=self.root / "sockets",
            patience=0,
            pause=lambda _: None,
            set_size=self.set_size,
        )

    def number_pids(self, namespace: str) -> None:
        """Have csi-host be in this namespace of pids; the machine's own at first."""
        link = self.proc / "self/ns/pid"
        link.unlink(missing_ok=True)
        link.symlink_to(namespace)

    def set_size(self, index: int, size_bytes: int, backend: str) -> None:
        """Do what nbd_netlink does, and remember it."""
        self.sizes_told.append((index, size_bytes, backend))
        (self.root / f"block/nbd{index}/size").write_text(f"{size_bytes // 512}\n")

    def connect(self, pid: int, *, number: int = 900, cookie: str = "v1", size: int = 1 << 20) -> Path:
        """Add a connected device that a process has made, with a ``cookie`` unless that is ""."""
        block = self.root / f"block/nbd{number}"
        block.mkdir()
        for name, text in {"pid": pid, "ro": 0, "size": size // 512, "backend": cookie}.items():
            (block / name).write_text(f"{text}\n")
        if not cookie:
            (block / "backend").unlink()
        return block

    def start(self, *words: str) -> int:
        """Add a process with these words on its command line, and return its pid."""
        self.pids += 1
        process = self.proc / str(self.pids)
        process.mkdir()
        (process / "comm").write_text(f"{Path(words[0]).name[:15]}\n")
        (process / "cmdline").write_text("\0".join(words) + "\0")
        return self.pids

    def kill(self, pid: int) -> None:
        """Have a process end that nobody reaps."""
        (self.proc / str(pid) / "cmdline").write_text("")

    def rbd_nbd(self, command: Command) -> Answer:
        """Do what the program does."""
        if "map" in command.argv:
            cookies = (word.partition("=")[2] for word in command.argv if word.startswith("--cookie="))
            self.connect(self.start(*command.argv), cookie=next(cookies, ""))
        elif "attach" in command.argv:
            self.start(*command.argv)
        else:
            block = self.root / "block" / Path(command.argv[2]).name
            for file in block.iterdir():
                file.unlink()
            block.rmdir()
        return Answer()
