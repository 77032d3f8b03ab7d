"""What is to be looked at closely: the subjects of the examinations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from csi_host_rbd.fsck.clone_checks import examine_clone, examine_snapshots
from csi_host_rbd.fsck.entry_checks import examine_entry
from csi_host_rbd.fsck.findings import Finding
from csi_host_rbd.fsck.group_checks import examine_group
from csi_host_rbd.fsck.image_checks import examine_image, examine_temporary
from csi_host_rbd.fsck.lock_checks import examine_lock
from csi_host_rbd.fsck.look import Look
from csi_host_rbd.fsck.name_checks import examine_name
from csi_host_rbd.fsck.names import KINDS
from csi_host_rbd.fsck.object_checks import examine_header, examine_object_map, examine_objects
from csi_host_rbd.fsck.trash_checks import examine_task, examine_trashed

_KINDS = {kind.directory: kind for kind in KINDS}
_EXAMINATIONS: Mapping[str, Callable[..., list[Finding]]] = {
    "name": lambda look, directory, name: examine_name(look, _KINDS[directory], name),
    "entry": lambda look, directory, uuid: examine_entry(look, _KINDS[directory], uuid),
    "image": examine_image,
    "temporary": examine_temporary,
    "snapshots": examine_snapshots,
    "clone": examine_clone,
    "objects": examine_objects,
    "header": examine_header,
    "object map": examine_object_map,
    "trashed": examine_trashed,
    "task": examine_task,
    "group": examine_group,
    "lock": examine_lock,
}


@dataclass(frozen=True)
class Suspicion:
    """Something that did not fit when it was read among many; only ``examine`` says whether it is wrong.

    ``what`` names the examination, ``subject`` what it takes.
    """

    what: str
    subject: tuple[str, ...]

    def examine(self, look: Look) -> list[Finding]:
        """Read it afresh and return what is wrong."""
        return _EXAMINATIONS[self.what](look, *self.subject)
