"""Which clones their parents know of, asked for many clones."""

from collections import OrderedDict

from csi_host_rbd.ceph.failures import ImageNotFound, PoolNotFound
from csi_host_rbd.ceph.parents import children_of, parent_of
from csi_host_rbd.fsck.look import Look


class Children:
    """The clones that parents know of; the last few parents' lists are kept, as one may have thousands of clones."""

    _KEPT = 64

    def __init__(self, look: Look) -> None:
        self._look = look
        self._lists: OrderedDict[object, frozenset[tuple[int, str, str]]] = OrderedDict()

    def has(self, image_id: str) -> bool:
        """Whether the parent of this clone knows of it, when last asked."""
        pool = self._look.pool
        try:
            parent = parent_of(pool, image_id)
            if parent is None:
                return True
            known = self._lists.get(parent)
            if known is None:
                known = frozenset(children_of(self._look.pool_at(parent.pool_id, parent.namespace), parent))
                self._keep(parent, known)
        except (ImageNotFound, PoolNotFound):
            return False
        return (pool.pool_id, pool.namespace, image_id) in known

    def _keep(self, parent: object, known: frozenset[tuple[int, str, str]]) -> None:
        self._lists[parent] = known
        while len(self._lists) > self._KEPT:
            self._lists.popitem(last=False)
