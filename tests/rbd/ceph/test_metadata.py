"""An image's metadata is written whoever has the image's exclusive lock, and nobody loses the lock by it."""

from collections.abc import Callable

import pytest

from csi_host_rbd.ceph import image_names, omap
from csi_host_rbd.ceph.bindings import rbd
from csi_host_rbd.ceph.cluster import Connection, Pool
from csi_host_rbd.ceph.create import ImageOptions, create_image
from csi_host_rbd.ceph.failures import ArgumentRefused, BackendUnavailable, ImageNotFound, ImageReadOnly
from csi_host_rbd.ceph.image import Image, open_image
from csi_host_rbd.ceph.writes import Writes
from csi_host_rbd.features import Feature
from csi_host_rbd.testing.operations import OperationCounter
from csi_host_rbd.testing.pools import PoolView

pytestmark = pytest.mark.ceph

SMALL_BYTES = 64 * 1024**2
LOCKED = Feature.LAYERING | Feature.EXCLUSIVE_LOCK
JOURNALED = LOCKED | Feature.JOURNALING
MakeLocked = Callable[..., None]


def changes_of(image: Image) -> tuple[Callable[[], None], ...]:
    return lambda: image.set_metadata("a", "2"), lambda: image.remove_metadata("a")


class Heard:
    """An observer that keeps what it hears."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def before(self, step: str) -> None:
        self.steps.append(f"before {step}")

    def after(self, step: str) -> None:
        self.steps.append(f"after {step}")


@pytest.fixture
def make_locked(store: Pool, pool: PoolView) -> MakeLocked:
    """Make the image "one", locked by a client that neither gives the lock up nor writes in another's place.

    The kernel's client is like that where it has mapped the image with the option ``exclusive``.
    """

    def make(features: int = LOCKED) -> None:
        create_image(store, "one", SMALL_BYTES, ImageOptions(features=features))
        pool.rbd("lock", "add", "one", "somebody")

    return make


def test_a_key_is_written_and_removed_while_another_client_keeps_the_lock(
    store: Pool, pool: PoolView, make_locked: MakeLocked
) -> None:
    make_locked()
    before = pool.rbd("lock", "ls", "one")
    assert "somebody" in before
    with open_image(store, name="one") as image:
        image.set_metadata("a", "eins ü")
        image.set_metadata("b", "2")
        image.set_metadata("a", "zwei ü")
        assert pool.metadata("one") == image.metadata() == {"a": "zwei ü", "b": "2"}
        image.remove_metadata("a")
        image.remove_metadata("a")
        assert pool.metadata("one") == {"b": "2"}
    assert pool.rbd("lock", "ls", "one") == before


def test_a_client_that_has_the_image_open_sees_what_is_written_and_goes_on_writing(store: Pool, pool: PoolView) -> None:
    create_image(store, "one", SMALL_BYTES, ImageOptions(features=LOCKED))
    with pool.opened("one") as holder, open_image(store, name="one") as image:
        holder.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
        image.set_metadata("a", "1")
        assert list(holder.metadata_list()) == [("a", "1")]
        assert holder.is_exclusive_lock_owner()
        holder.write(b"still writing", 0)
    assert pool.read("one", 13) == b"still writing"


def test_a_write_is_one_operation_and_a_durable_step(store: Pool, counter: OperationCounter) -> None:
    create_image(store, "one", SMALL_BYTES, ImageOptions(features=LOCKED))
    heard = Heard()
    store.writes = Writes(heard)
    with open_image(store, name="one") as image:
        for change in changes_of(image):
            with counter.counting() as count:
                change()
            assert count.operations == 1
    set_, removed = (f"{what} metadata a of image {store.spec('one')}" for what in ("writing", "removing"))
    assert heard.steps == [f"before {set_}", f"after {set_}", f"before {removed}", f"after {removed}"]


def test_a_journal_is_told_of_every_key_so_that_the_other_site_gets_it(
    store: Pool, pool: PoolView, make_locked: MakeLocked
) -> None:
    create_image(store, "free", SMALL_BYTES, ImageOptions(features=JOURNALED))
    assert "entry_tid" not in pool.rbd("journal", "status", "--image", "free")
    with open_image(store, name="free") as image:
        image.set_metadata("a", "1")
    assert "entry_tid" in pool.rbd("journal", "status", "--image", "free")
    make_locked(JOURNALED)
    with open_image(store, name="one") as image, pytest.raises(BackendUnavailable, match="locked"):
        image.set_metadata("a", "2")
    assert pool.metadata("one") == {}


@pytest.mark.parametrize("mode", ["journal", "snapshot"])
def test_a_mirrors_copy_is_not_written(connection: Connection, whole_pool: PoolView, mode: str) -> None:
    copied = connection.pool(whole_pool.name, "")
    create_image(copied, "one", SMALL_BYTES, ImageOptions(features=LOCKED))
    with open_image(copied, name="one") as image:
        image.set_metadata("a", "1")
    whole_pool.enable_mirroring("one", mode=mode)
    whole_pool.rbd("mirror", "image", "demote", "one")
    with open_image(copied, name="one") as image:
        for change in changes_of(image):
            with pytest.raises(BackendUnavailable, match="secondary"):
                change()
    assert whole_pool.metadata("one") == {"a": "1"}


def test_librbd_looks_at_what_is_a_setting_of_its_own(store: Pool, pool: PoolView) -> None:
    create_image(store, "one", SMALL_BYTES, ImageOptions(features=LOCKED))
    with open_image(store, name="one") as image:
        with pytest.raises(ArgumentRefused):
            image.set_metadata("conf_rbd_qos_iops_limit", "many")
        image.set_metadata("conf_rbd_qos_iops_limit", "100")
        assert pool.metadata("one") == {"conf_rbd_qos_iops_limit": "100"}
        image.remove_metadata("conf_rbd_qos_iops_limit")
        image.remove_metadata("conf_rbd_qos_iops_limit")
    assert pool.metadata("one") == {}


def test_the_header_of_an_image_that_was_removed_does_not_come_back(store: Pool, pool: PoolView) -> None:
    create_image(store, "one", SMALL_BYTES, ImageOptions(features=LOCKED))
    header = f"rbd_header.{image_names.read_image_id(store, 'one')}"
    with open_image(store, name="one") as image:
        omap.remove_object(store, header)
        for change in changes_of(image):
            with pytest.raises(ImageNotFound, match="one"):
                change()
        assert header not in pool.objects()


def test_what_was_opened_for_reading_is_not_written(store: Pool, pool: PoolView) -> None:
    create_image(store, "one", SMALL_BYTES, ImageOptions(features=LOCKED))
    with open_image(store, name="one", read_only=True) as image:
        for change in changes_of(image):
            with pytest.raises(ImageReadOnly):
                change()
    assert pool.metadata("one") == {}
