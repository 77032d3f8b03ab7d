"""Everything that ``csi-host rbd fsck`` can find, by the names that scripts rely on."""

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad a finding is: ERROR stops a volume or name from working, WARNING is a leak, INFO a blemish."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class Mending(StrEnum):
    """What ``--repair`` does: mends it; mends it only with ``--remove-data``; or leaves it to a person."""

    SAFE = "safe"
    REMOVES_DATA = "removes-data"
    BY_HAND = "by-hand"


@dataclass(frozen=True)
class FindingClass:
    """A kind of finding; ``name`` is stable."""

    name: str
    severity: Severity
    mending: Mending
    summary: str


_CLASSES = (
    # journal
    FindingClass("stale-name", Severity.ERROR, Mending.SAFE, "A name leads to a uuid whose object is missing or empty"),
    FindingClass(
        "lost-entry", Severity.ERROR, Mending.SAFE, "A name leads to a uuid whose keys are lost, but its image is there"
    ),
    FindingClass("names-mismatch", Severity.ERROR, Mending.BY_HAND, "A name leads to an object of another name"),
    FindingClass("name-unreadable", Severity.WARNING, Mending.BY_HAND, "What a name leads to is no uuid"),
    FindingClass("empty-name", Severity.INFO, Mending.SAFE, "The directory has a key without a name, left by ceph-csi"),
    FindingClass(
        "entry-without-name", Severity.WARNING, Mending.SAFE, "An object of the journal has neither name nor image"
    ),
    FindingClass(
        "volume-without-name", Severity.ERROR, Mending.SAFE, "A volume has lost its name: CreateVolume makes a second"
    ),
    FindingClass("duplicate-volume", Severity.ERROR, Mending.BY_HAND, "Two volumes have the same name"),
    FindingClass("keys-lost", Severity.ERROR, Mending.BY_HAND, "An image is there, the keys of its entry are not"),
    # journal and images
    FindingClass("image-missing", Severity.WARNING, Mending.SAFE, "The journal has an image that is nowhere"),
    FindingClass("image-renamed", Severity.ERROR, Mending.BY_HAND, "An image of the journal has another name now"),
    FindingClass(
        "image-id-missing", Severity.INFO, Mending.BY_HAND, "The journal lacks an image's id: it was never handed out"
    ),
    FindingClass("image-id-stale", Severity.WARNING, Mending.SAFE, "The journal has another id than the image"),
    FindingClass(
        "image-without-entry",
        Severity.WARNING,
        Mending.REMOVES_DATA,
        "An image that looks like a volume's has no entry; it may be a static volume, or another program's",
    ),
    FindingClass(
        "temp-without-clone", Severity.WARNING, Mending.SAFE, "The image between a volume and its clone is left"
    ),
    # trash and manager
    FindingClass(
        "trash-move-unfinished",
        Severity.WARNING,
        Mending.SAFE,
        "A deleted image is stuck on its way to the trash, and is never removed",
    ),
    FindingClass("trash-without-task", Severity.WARNING, Mending.SAFE, "A deleted image lies in the trash for good"),
    FindingClass(
        "deletion-unfinished",
        Severity.WARNING,
        Mending.REMOVES_DATA,
        "An image is in the trash, its entry is not undone",
    ),
    FindingClass("task-failing", Severity.WARNING, Mending.BY_HAND, "A task of the manager fails again and again"),
    # snapshots and clones
    FindingClass(
        "snapshot-left-behind", Severity.WARNING, Mending.SAFE, "A snapshot on a source that its clone needs no more"
    ),
    FindingClass(
        "snapshot-unfinished",
        Severity.WARNING,
        Mending.REMOVES_DATA,
        "A snapshot was taken and never cloned (cut off, or made by ceph-csi before v3.0)",
    ),
    FindingClass("snapshot-missing", Severity.ERROR, Mending.SAFE, "The image of a snapshot lacks its own snapshot"),
    FindingClass("child-not-registered", Severity.ERROR, Mending.SAFE, "A clone that its parent does not know of"),
    FindingClass("parent-missing", Severity.ERROR, Mending.BY_HAND, "A clone whose parent is gone"),
    FindingClass(
        "clone-unfinished", Severity.ERROR, Mending.REMOVES_DATA, "A clone was cut off before it got its parent"
    ),
    # objects of images
    FindingClass("image-remnants", Severity.WARNING, Mending.SAFE, "Names of an image that was never made, or is gone"),
    FindingClass("image-not-listed", Severity.ERROR, Mending.SAFE, "A whole image that the directory lacks"),
    FindingClass("id-object-missing", Severity.ERROR, Mending.SAFE, "A whole image that cannot be opened by its name"),
    FindingClass("image-names-mismatch", Severity.ERROR, Mending.BY_HAND, "One name of an image leads to two images"),
    FindingClass(
        "orphan-header", Severity.WARNING, Mending.SAFE, "An image without any name; it is put into the trash"
    ),
    FindingClass("orphan-object-map", Severity.INFO, Mending.SAFE, "An object map whose image is gone"),
    # groups and locks
    FindingClass("group-missing", Severity.WARNING, Mending.SAFE, "The journal has a group that is nowhere"),
    FindingClass(
        "group-without-entry", Severity.WARNING, Mending.REMOVES_DATA, "A group that looks like ours has no entry"
    ),
    FindingClass("group-member-missing", Severity.WARNING, Mending.BY_HAND, "A group's snapshot has no entry"),
    FindingClass("abandoned-lock", Severity.INFO, Mending.SAFE, "The object of a lock that nobody holds"),
)

CLASSES = {one.name: one for one in _CLASSES}
