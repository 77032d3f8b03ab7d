"""SELinux contexts among mount options: one context for all files of a filesystem, decided when it is mounted."""

import re
from collections.abc import Iterable

from csi_host.node.mounts import Mount

_CONTEXT = "context="
# A filesystem whose files have SELinux labels of their own, and not one for all of them, has this among its options.
_OWN_LABELS = "seclabel"
# The parts are user:role:type:sensitivity:categories; a category is c7, or c7.c9 for three.
_CATEGORY = re.compile(r"c(\d+)(?:\.c(\d+))?")
_PARTS = 5


def other_context(mount: Mount, options: Iterable[str]) -> str:
    """Return in words how the SELinux context of a mount differs from the one that options ask for, "" if it does not.

    Without SELinux a mount shows neither a context nor labels, whatever it was mounted with: then nothing differs.
    """
    wanted, found = _context_in(options), _context_in(mount.super_options)
    if wanted is None or (found is None and _OWN_LABELS not in mount.super_options):
        return ""
    if found is not None and _canonical(wanted) == _canonical(found):
        return ""
    how = f"the SELinux context {found}" if found else "SELinux labels of its own"
    return f"is staged with {how} already, which cannot become the context {wanted}"


def _context_in(options: Iterable[str]) -> str | None:
    for option in options:
        if option.startswith(_CONTEXT):
            return option.removeprefix(_CONTEXT).strip('"')
    return None


def _canonical(context: str) -> tuple[str | frozenset[int], ...]:
    """Return a context with its categories as a set: the kernel shows them in an order and in ranges of its own."""
    *before, last = context.split(":", _PARTS - 1)
    categories = [found for word in last.split(",") if (found := _CATEGORY.fullmatch(word))]
    if len(before) < _PARTS - 1 or len(categories) != len(last.split(",")):
        return (*before, last)
    ranges = (range(int(found[1]), int(found[2] or found[1]) + 1) for found in categories)
    return (*before, frozenset(number for numbers in ranges for number in numbers))
