"""The OSD's object class ``lock``: advisory locks on an object, as requests of one or several at once.

The binding has its own calls for single requests, but a leased lock needs two in one operation. The encoding is that
of ``cls_lock_ops.h``, unchanged since Ceph 0.94. Requests of one operation do not see each other's effect on the same
lock: giving a lock up and taking it again are two operations. An expired lock is gone for every request.
"""

import ipaddress
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from csi_host.errors import Aborted, Unavailable
from csi_host_rbd.ceph.bindings import rados
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.encoding import Decoder, EncodingInvalid, packed, packed_struct
from csi_host_rbd.ceph.failures import translated

_CLASS = "lock"
_REPLY_BYTES = 256 * 1024
_NANOSECONDS = 1_000_000_000
_MAY_RENEW = 1
_CLIENT = 8
_ADDRESS_MARKER = 1
_IPV4, _IPV6 = 2, 10


class LockType(IntEnum):
    """Whether others may have the lock as well."""

    EXCLUSIVE = 1
    SHARED = 2


class LockTaken(Aborted):
    """Somebody else has the lock."""


class LockUnreadable(Unavailable):
    """What lies where the lock should be is none; only a person can tell whose it was."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A client that has a lock; ``address`` is how the OSD sees it, ``description`` what it says of itself."""

    entity_type: int
    client_id: int
    cookie: str
    address: str
    description: str

    def __str__(self) -> str:
        return f"client.{self.client_id} at {self.address}"

    def is_client(self, client_id: int) -> bool:
        """Whether it is the client of this number."""
        return self.entity_type == _CLIENT and self.client_id == client_id


@dataclass(frozen=True, kw_only=True)
class LockState:
    """Who has a lock; ``lock_type`` says nothing where there are no owners."""

    lock_type: int
    owners: tuple[Owner, ...]


@dataclass(frozen=True, kw_only=True)
class LockRequest:
    """One request of an operation: the class's method and what it takes."""

    method: str
    payload: bytes


def lock(
    name: str,
    lock_type: LockType,
    cookie: str,
    *,
    description: str = "",
    seconds: float = 0.0,
    may_renew: bool = False,
) -> LockRequest:
    """Take a lock, for ``seconds`` of the OSD's clock or (0) for good; fails with LockTaken."""
    duration = struct.pack("<II", int(seconds), int(seconds % 1 * _NANOSECONDS))
    texts = packed(name), bytes([lock_type]), packed(cookie), packed(""), packed(description)
    return LockRequest(
        method="lock", payload=packed_struct(b"".join((*texts, duration, bytes([_MAY_RENEW if may_renew else 0]))))
    )


def unlock(name: str, cookie: str) -> LockRequest:
    """Give a lock of this client back; fails with ObjectNotFound when it has it no more."""
    return LockRequest(method="unlock", payload=packed_struct(packed(name) + packed(cookie)))


def break_lock(name: str, owner: Owner) -> LockRequest:
    """Take a lock away from its owner; fails with ObjectNotFound when that has it no more."""
    entity = struct.pack("<Bq", owner.entity_type, owner.client_id)
    return LockRequest(method="break_lock", payload=packed_struct(packed(name) + entity + packed(owner.cookie)))


def assert_locked(name: str, lock_type: LockType, cookie: str) -> LockRequest:
    """Make the whole operation fail with LockTaken unless this client has the lock."""
    payload = packed(name) + bytes([lock_type]) + packed(cookie) + packed("")
    return LockRequest(method="assert_locked", payload=packed_struct(payload))


def operate(pool: Pool, object_name: str, *requests: LockRequest, removes: bool = False) -> None:
    """Do all requests, or none when one fails; with ``removes`` the object goes as well. 1 operation.

    Raises LockTaken, ObjectNotFound, LockUnreadable.
    """
    with _failures(pool, object_name), _operation(requests, removes=removes) as operation:
        # The binding sends its default as it is, and the object would be from 1970.
        pool.ioctx.operate_write_op(operation, object_name, int(time.time()))


def operate_later(pool: Pool, object_name: str, *requests: LockRequest, done: Callable[[int], None]) -> None:
    """Send the requests without waiting; ``done`` gets 0 or an errno, on a thread of librados. 1 operation."""

    def completed(completion: Any) -> None:
        done(abs(int(completion.get_return_value())))

    with _failures(pool, object_name), _operation(requests) as operation:
        pool.ioctx.operate_aio_write_op(operation, object_name, oncomplete=completed, mtime=int(time.time()))


def read_lock(pool: Pool, object_name: str, name: str) -> LockState:
    """Return who has a lock now; nobody when there is no object. 1 operation. Raises LockUnreadable."""
    with _failures(pool, object_name):
        try:
            _, reply = pool.ioctx.execute(object_name, _CLASS, "get_info", packed_struct(packed(name)), _REPLY_BYTES)
        except rados.ObjectNotFound:
            return LockState(lock_type=0, owners=())
        try:
            return Decoder(reply).versioned(_lock_state)
        except (EncodingInvalid, ValueError) as error:
            raise LockUnreadable(f"{_what(pool, object_name)}: the OSD's answer is not understood: {error}") from error


@contextmanager
def _operation(requests: tuple[LockRequest, ...], *, removes: bool = False) -> Iterator[Any]:
    with rados.WriteOpCtx() as operation:
        for request in requests:
            operation.execute(_CLASS, request.method, request.payload)
        if removes:
            operation.remove()
        yield operation


@contextmanager
def _failures(pool: Pool, object_name: str) -> Iterator[None]:
    what = _what(pool, object_name)
    with translated(what):
        try:
            yield
        except (rados.ObjectBusy, rados.ObjectExists) as error:
            raise LockTaken(f"{what}: somebody else has it") from error
        except rados.IOError as error:
            raise LockUnreadable(
                f"{what} cannot be read, by an I/O error or as it is no lock; if it stays so, remove it with "
                f"`rados --pool {pool.name} --namespace '{pool.namespace}' rm {object_name}` while no controller runs"
            ) from error


def _what(pool: Pool, object_name: str) -> str:
    return f"lock object {pool.spec(object_name)}"


def _lock_state(reply: Decoder) -> LockState:
    owners = tuple(_owner(reply) for _ in range(reply.u32()))
    return LockState(lock_type=reply.u8(), owners=owners)


def _owner(reply: Decoder) -> Owner:
    entity_type, client_id, cookie = reply.versioned(lambda one: (one.u8(), one.s64(), one.text()))
    address, description = reply.versioned(_address_and_description)
    return Owner(entity_type=entity_type, client_id=client_id, cookie=cookie, address=address, description=description)


def _address_and_description(reply: Decoder) -> tuple[str, str]:
    # The expiration, in seconds and nanoseconds of the OSD's clock, which is compared with no other.
    reply.u64()
    if reply.u8() != _ADDRESS_MARKER:
        raise EncodingInvalid("an address in the form before Ceph 10")
    return reply.versioned(_address), reply.text()


def _address(reply: Decoder) -> str:
    """Read an address as ``osd blocklist`` takes it: ``IP:port/nonce``."""
    reply.u32()  # v1 or v2: a client is shut out under both
    nonce = reply.u32()
    place = reply.raw(reply.u32())
    family = int.from_bytes(place[:2], "little")
    if family == _IPV4:
        host = str(ipaddress.IPv4Address(place[4:8]))
    elif family == _IPV6:
        host = f"[{ipaddress.IPv6Address(place[8:24])}]"
    else:
        raise EncodingInvalid(f"an address of family {family}")
    return f"{host}:{int.from_bytes(place[2:4], 'big')}/{nonce}"
