"""The files of one image's storage daemon."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from csi_host_rbd.attach.attacher import ImageSpec

_BARE = "-bare"


@dataclass(frozen=True, kw_only=True)
class Home:
    """The directory of one image's daemon; none of its files holds a secret."""

    path: Path

    @property
    def bare(self) -> "Home":
        """The directory of the image's other daemon, which shows it with its LUKS header."""
        return Home(path=self.path.with_name(f"{self.path.name}{_BARE}"))

    @property
    def is_bare(self) -> bool:
        """Whether this is such a directory."""
        return self.path.name.endswith(_BARE)

    @property
    def socket(self) -> Path:
        """Where the daemon listens for QMP."""
        return self.path / "qmp.sock"

    @property
    def conf(self) -> Path:
        """The daemon's ceph.conf."""
        return self.path / "ceph.conf"

    @property
    def node(self) -> Path:
        """How the daemon was told to open the image."""
        return self.path / "node.json"

    @property
    def image(self) -> Path:
        """Which image it is; written before the daemon starts, for whoever does not know it."""
        return self.path / "spec.json"

    @property
    def export(self) -> Path:
        """The file that shows the image; looking at it can hang, so only programs with a timeout do."""
        return self.path / "image"

    def write(self, file: Path, text: str) -> None:
        """Write one of the files, which nobody else can read: an operator's ceph.conf may say more than it should."""
        file.touch(mode=0o600)
        file.write_text(text)

    def note(self, spec: ImageSpec) -> None:
        """Write down which image it is."""
        self.write(self.image, json.dumps(asdict(spec)))

    def spec(self) -> ImageSpec | None:
        """Return which image it is, None where that is not known."""
        try:
            return ImageSpec(**json.loads(self.image.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def clear(self) -> None:
        """Remove the files; nothing may be mounted on the export any more. Which image it is goes last."""
        for file in (self.socket, self.conf, self.node, self.export, self.image):
            file.unlink(missing_ok=True)
