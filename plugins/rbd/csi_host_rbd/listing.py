"""Lists of what the journals know, page by page.

The entries are in one order: by cluster id, pool id and CO name, and a page is read from the directory objects where
the token points, so it costs the same however many entries there are: one operation for each 256 names, then a few for
each entry. A directory's entry that leads nowhere is skipped.

What the user may not read, and pools that hold nothing of ours, are passed over at one operation each. A cluster that
does not answer fails the page: a list without its volumes would say that they are gone.
"""

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from csi_host.errors import CsiError
from csi_host.request import seconds_for
from csi_host_rbd.backend import Backend, Cluster
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import AuthenticationRefused, PermissionDenied
from csi_host_rbd.journal import Journal
from csi_host_rbd.page_token import PageToken, PageTokenInvalid, digest_of
from csi_host_rbd.parallel import in_parallel
from csi_host_rbd.reservations import Kind, Reservation
from csi_host_rbd.volume_id import UUID_LENGTH, InvalidVolumeId, VolumeId

log = logging.getLogger(__name__)

T = TypeVar("T")

# An entry of a reply has some 300 bytes, seldom up to a kilobyte, and a sidecar takes 4 MiB.
DEFAULT_ENTRIES = 1000
MOST_ENTRIES = 3000
# Names read at once, well below what an OSD answers to one question (1024).
_BATCH = 256
# A filtered list looks at so many entries for one page; the page may end up short, or empty, with a token.
_MOST_EXAMINED = 3000


@dataclass(frozen=True, kw_only=True)
class Page(Generic[T]):
    """Some entries, and the token of the next page; "" at the end."""

    entries: Sequence[T]
    next_token: str


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The one pool that a list is about."""

    cluster_id: str
    pool_id: int


# What becomes of a page's reservations, all of one cluster: each that is an entry, with the entry.
Look = Callable[[Cluster, Sequence[Reservation]], Sequence[tuple[Reservation, T]]]


@dataclass(frozen=True, kw_only=True)
class _Shelf:
    """One pool's journal, to be read from behind a name."""

    cluster: Cluster
    pool: Pool
    journal: Journal
    start_after: str


@dataclass(kw_only=True)
class _Collected(Generic[T]):
    """The page as far as it has come; of a filtered one it is not known how many names it takes."""

    limit: int
    is_filtered: bool
    entries: list[T] = field(default_factory=list)
    examined: int = 0
    next_token: str = ""

    @property
    def is_full(self) -> bool:
        return len(self.entries) >= self.limit or self.examined >= _MOST_EXAMINED

    @property
    def wanted_names(self) -> int:
        # Of a full page it only matters whether anything follows.
        if self.is_full:
            return 1
        return _BATCH if self.is_filtered else min(_BATCH, self.limit - len(self.entries))


class Listing:
    """The lists of one kind of thing in all clusters and pools; ``letter`` marks their tokens."""

    def __init__(self, *, backend: Backend, kind: Kind, letter: str) -> None:
        self._backend = backend
        self._kind = kind
        self._letter = letter

    def page(
        self,
        look: Look[T],
        *,
        starting_token: str,
        max_entries: int,
        secrets: Mapping[str, str] | None = None,
        scope: Scope | None = None,
    ) -> Page[T]:
        """Return a page of ``max_entries`` at the most (0 leaves it to us); raises PageTokenInvalid."""
        collected: _Collected[T] = _Collected(
            limit=min(max_entries or DEFAULT_ENTRIES, MOST_ENTRIES), is_filtered=scope is not None
        )
        start = PageToken.parse(starting_token, kind=self._letter) if starting_token else None
        try:
            with closing(self._shelves(start, secrets, scope)) as shelves:
                has_more = any(self._collect(shelf, look, collected) for shelf in shelves)
        except CsiError:
            if not collected.is_full:
                raise
            # Whether anything follows could not be seen. The next page tells what is wrong.
            has_more = True
        return Page(entries=collected.entries, next_token=collected.next_token if has_more else "")

    def _collect(self, shelf: _Shelf, look: Look[T], collected: _Collected[T]) -> bool:
        """Add a journal's entries; whether the page was full before it ended."""
        start_after = shelf.start_after
        while names := _names(shelf, start_after, collected.wanted_names):
            if collected.is_full:
                return True
            # The caller may have gone meanwhile.
            seconds_for("listing more", at_most=1.0)
            listed = look(shelf.cluster, _reservations(shelf, names))
            start_after, value = names[-1]
            for reservation, entry in listed:
                if len(collected.entries) == collected.limit:
                    return True
                collected.entries.append(entry)
                collected.next_token = self._token(shelf, reservation.name, reservation.uuid)
            collected.examined += len(names)
            collected.next_token = self._token(shelf, start_after, value.rpartition("/")[2])
        return False

    def _token(self, shelf: _Shelf, name: str, uuid: str) -> str:
        return str(
            PageToken.after(
                kind=self._letter,
                cluster_id=shelf.cluster.config.cluster_id,
                pool_id=shelf.pool.pool_id,
                name=name,
                uuid=uuid,
            )
        )

    def _shelves(
        self, start: PageToken | None, secrets: Mapping[str, str] | None, scope: Scope | None
    ) -> Generator[_Shelf]:
        """Yield the journals in order, each while its cluster is open."""
        for cluster_id in self._cluster_ids(start, scope):
            try:
                with self._backend.open_with(cluster_id, secrets) as cluster:
                    yield from self._shelves_of(cluster, start, scope)
            except AuthenticationRefused:
                # The call's own user may be unknown in some of the clusters; the driver's is configured for each.
                if not secrets or scope is not None:
                    raise
                log.info(f"cluster {cluster_id} does not know the user of this call and is left out of the list")

    def _cluster_ids(self, start: PageToken | None, scope: Scope | None) -> list[str]:
        ids = [one for one in self._backend.cluster_ids() if _has_handles(one)]
        if scope is not None:
            ids = [one for one in ids if one == scope.cluster_id]
        if start is None:
            return ids
        digests = [digest_of(one) for one in ids]
        if start.cluster_digest not in digests:
            raise PageTokenInvalid(
                "starting_token: its cluster is not in the configuration any more; begin without one"
            )
        return ids[digests.index(start.cluster_digest) :]

    def _shelves_of(self, cluster: Cluster, start: PageToken | None, scope: Scope | None) -> Generator[_Shelf]:
        is_first = start is not None and digest_of(cluster.config.cluster_id) == start.cluster_digest
        begin = start if is_first else None
        for pool in cluster.pools():
            if scope is not None and pool.pool_id != scope.pool_id:
                continue
            if begin is not None and pool.pool_id < begin.pool_id:
                continue
            journal = self._backend.journal(cluster, pool, self._kind)
            is_begun = begin is not None and pool.pool_id == begin.pool_id
            start_after = _name_of(begin, journal) if begin is not None and is_begun else ""
            yield _Shelf(cluster=cluster, pool=pool, journal=journal, start_after=start_after)


def _has_handles(cluster_id: str) -> bool:
    """Whether a handle has room for this cluster's id; no volume can be made in one that is too long."""
    try:
        VolumeId(cluster_id=cluster_id, pool_id=0, uuid="0" * UUID_LENGTH).encode()
    except InvalidVolumeId:
        return False
    return True


def _names(shelf: _Shelf, start_after: str, entries: int) -> list[tuple[str, str]]:
    try:
        return shelf.journal.names(start_after=start_after, entries=entries)
    except PermissionDenied as reason:
        log.debug(f"pool {shelf.pool.name} is left out of the list: {reason}")
        return []


def _reservations(shelf: _Shelf, names: Sequence[tuple[str, str]]) -> list[Reservation]:
    """Return what the directory's entries lead to; those that lead nowhere, or where no handle can, are left out."""
    found = in_parallel(lambda entry: shelf.journal.reservation(*entry), names)
    return [one for one in found if one is not None and len(one.uuid.encode()) == UUID_LENGTH]


def _name_of(token: PageToken, journal: Journal) -> str:
    """Return the whole name of a token's entry; of a long one that is gone only its beginning is known."""
    if not token.uuid:
        return token.name
    found = journal.read(token.uuid)
    return found.name if found is not None and found.name.startswith(token.name) else token.name
