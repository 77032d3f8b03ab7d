"""``mapOptions`` and ``unmapOptions`` of a StorageClass: what an administrator adds to a mounter's command lines.

``krbd:a,b=c;nbd:d=e`` names the mounter of each part; a part without a name is krbd's, as in ceph-csi. They come from
whoever writes StorageClasses, which need not be who is root on the nodes: what could name another image, another user
or a program to start is refused.
"""

import re

from csi_host.errors import InvalidArgument

# By the mounters' own names; qemu has no options.
_PREFIXES = {"krbd": "rbd", "nbd": "rbd-nbd"}
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(=[A-Za-z0-9_.:/|+-]*)?")
_KRBD_REFUSED = frozenset({"name", "secret", "key", "keyfile", "fsid", "snap", "ro", "read_only", "rw", "read_write"})
_NBD_NAMES = frozenset({"try-netlink", "reattach-timeout", "io-timeout", "timeout", "exclusive", "max_part", "quiesce"})
_NBD_UNMAP_NAMES = frozenset({"force", "unmap-timeout", "reattach-timeout"})
# librbd's and librados' own settings that say how a client behaves, not who it is or what it loads.
_CEPH_SETTING = re.compile(r"(rbd|debug|objecter|ms|rados)_[a-z0-9_]+")
_CEPH_REFUSED = frozenset({"rbd_plugins"})


class MapOptionsInvalid(InvalidArgument):
    """The options cannot be given to the mounter; the message names the field and the word."""


def options_of(text: str, mounter: str, name: str, *, where: str = "volume_context") -> str:
    """Return the options for ``mounter`` of the text in ``<where>[<name>]``, separated by commas.

    The parts of other mounters are checked as well. Raises MapOptionsInvalid.
    """
    field, chosen = f"{where}[{name}]", list[str]()
    for part in filter(None, (part.strip() for part in text.split(";"))):
        whose, words = _split(part, field)
        for word in words:
            _check(word, whose, field, _NBD_UNMAP_NAMES if name == "unmapOptions" else _NBD_NAMES)
        if whose == mounter:
            chosen += words
    return ",".join(chosen)


def has_option(options: str, name: str) -> bool:
    """Tell whether a comma list has the option ``name``, however its words are joined."""
    return name in {_name(word).replace("_", "-") for word in options.split(",")}


def _split(part: str, field: str) -> tuple[str, list[str]]:
    prefix, colon, rest = part.partition(":")
    if not colon:
        return "rbd", _words(part)
    if prefix.strip() not in _PREFIXES:
        raise MapOptionsInvalid(
            f"{field}: expected krbd:… or nbd:…, as options with a colon need the mounter's name, got {part!r}"
        )
    return _PREFIXES[prefix.strip()], _words(rest)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _check(word: str, mounter: str, field: str, nbd_names: frozenset[str]) -> None:
    name = _name(word)
    if not _WORD.fullmatch(word):
        # The value may be somebody's key.
        shown = f"{name}=…" if "=" in word else name
        raise MapOptionsInvalid(f"{field}: expected options such as name or name=value, got {shown!r}")
    if mounter == "rbd":
        if name in _KRBD_REFUSED:
            raise MapOptionsInvalid(f"{field}: {name} is the driver's to set")
        return
    setting = name.replace("-", "_")
    if name in nbd_names or (_CEPH_SETTING.fullmatch(setting) and setting not in _CEPH_REFUSED):
        return
    raise MapOptionsInvalid(
        f"{field}: expected for nbd one of {', '.join(sorted(nbd_names))} or a setting of Ceph that begins "
        f"with rbd_, debug_, objecter_, ms_ or rados_, got {name!r}"
    )


def _name(word: str) -> str:
    return word.partition("=")[0]
