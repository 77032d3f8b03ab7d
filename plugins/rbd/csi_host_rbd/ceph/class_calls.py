"""Questions to the OSD's class ``rbd``, which reads what librbd wrote; one operation each."""

import errno
from collections.abc import Callable
from typing import TypeVar

from csi_host_rbd.ceph.bindings import rados
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.encoding import Decoder, EncodingInvalid
from csi_host_rbd.ceph.failures import CephRefused, ImageNotFound, ObjectNotFound, errno_of, error_of

T = TypeVar("T")

HEADER_PREFIX = "rbd_header."
_ANSWER_BYTES = 64 * 1024
_LONGER = 16
# A million clones of one snapshot; an OSD sends no more in one answer (osd_max_write_size).
_LONGEST_ANSWER_BYTES = _ANSWER_BYTES * _LONGER**2


def ask(pool: Pool, name: str, method: str, question: bytes, read: Callable[[Decoder], T]) -> T:
    """Return what the class answers about an object; raises ObjectNotFound. 1 operation, 2 or 3 for a long answer."""
    step = f"asking object {pool.name}/{name} for {method}"
    answer = _answer(pool, name, method, question, step)
    try:
        return read(Decoder(answer))
    except EncodingInvalid as error:
        raise CephRefused(f"{step}: the answer cannot be read: {error}") from error


def ask_image(pool: Pool, image_id: str, method: str, question: bytes, read: Callable[[Decoder], T]) -> T:
    """Return what the class answers about an image; raises ImageNotFound, otherwise as ``ask``."""
    try:
        return ask(pool, HEADER_PREFIX + image_id, method, question, read)
    except ObjectNotFound as error:
        raise ImageNotFound(f"image {pool.spec(f'id {image_id}')}: {error}") from error


def _answer(pool: Pool, name: str, method: str, question: bytes, step: str) -> bytes:
    room = _ANSWER_BYTES
    while True:
        try:
            _, answer = pool.ioctx.execute(name, "rbd", method, question, room)
        except rados.Error as error:
            if errno_of(error) != errno.ERANGE or room == _LONGEST_ANSWER_BYTES:
                raise error_of(error, step) from error
            # librados throws away an answer that is longer than the room it was given.
            room *= _LONGER
        else:
            return bytes(answer)
