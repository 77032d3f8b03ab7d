import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from csi_host.errors import InvalidArgument
from csi_host_rbd.ceph import omap
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import BackendTimeout, KeyMismatch, ObjectExists, ObjectNotFound
from csi_host_rbd.testing.operations import OperationCounter
from csi_host_rbd.testing.pools import PoolView

pytestmark = pytest.mark.ceph


def test_an_object_is_made_with_all_its_keys(store: Pool, pool: PoolView) -> None:
    omap.create_object(store, "one", {"a": "1", "b": "zwei ü"})
    assert pool.keys("one") == {"a": "1", "b": "zwei ü"}


def test_an_object_is_not_made_twice_and_keeps_what_it_has(store: Pool, pool: PoolView) -> None:
    omap.create_object(store, "one", {"a": "1"})
    with pytest.raises(ObjectExists):
        omap.create_object(store, "one", {"a": "2", "b": "3"})
    assert pool.keys("one") == {"a": "1"}


def test_reading_gives_the_keys_that_there_are(store: Pool) -> None:
    omap.create_object(store, "one", {"a": "1", "b": "2"})
    assert omap.read_keys(store, "one", ["a", "missing"]) == {"a": "1"}


def test_reading_a_missing_object_says_so(store: Pool) -> None:
    with pytest.raises(ObjectNotFound, match="nothing"):
        omap.read_keys(store, "nothing", ["a"])


def test_an_empty_value_is_read_as_empty_text(store: Pool) -> None:
    omap.create_object(store, "one", {"a": ""})
    assert omap.read_keys(store, "one", ["a"]) == {"a": ""}
    assert omap.read_page(store, "one") == {"a": ""}


def test_a_listing_goes_on_after_the_last_key_and_keeps_to_the_prefix(store: Pool) -> None:
    omap.create_object(store, "one", {f"csi.{number:03}": str(number) for number in range(7)} | {"other": "x"})
    first = omap.read_page(store, "one", prefix="csi.", entries=4)
    rest = omap.read_page(store, "one", prefix="csi.", start_after=max(first), entries=4)
    assert list(first) == ["csi.000", "csi.001", "csi.002", "csi.003"]
    assert list(rest) == ["csi.004", "csi.005", "csi.006"]


def test_a_key_is_claimed_once_also_on_an_object_that_is_not_there(store: Pool, pool: PoolView) -> None:
    omap.claim_key(store, "directory", "name", "first")
    with pytest.raises(KeyMismatch):
        omap.claim_key(store, "directory", "name", "second")
    assert pool.keys("directory") == {"name": "first"}


def test_of_many_that_claim_a_key_at_once_one_gets_it(store: Pool, pool: PoolView) -> None:
    start, winners = threading.Barrier(8), []

    def claim(value: str) -> None:
        start.wait()
        try:
            omap.claim_key(store, "directory", "name", value)
        except KeyMismatch:
            return
        winners.append(value)

    threads = [threading.Thread(target=claim, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [pool.keys("directory")["name"]] == winners


def test_a_key_is_removed_only_with_the_value_it_is_known_to_have(store: Pool, pool: PoolView) -> None:
    omap.claim_key(store, "directory", "name", "theirs")
    with pytest.raises(KeyMismatch):
        omap.remove_key_if(store, "directory", "name", "ours")
    assert pool.keys("directory") == {"name": "theirs"}
    omap.remove_key_if(store, "directory", "name", "theirs")
    assert pool.keys("directory") == {}
    with pytest.raises(KeyMismatch):
        omap.remove_key_if(store, "directory", "name", "theirs")
    with pytest.raises(ObjectNotFound):
        omap.remove_key_if(store, "no directory", "name", "theirs")


def test_updating_keys_does_not_bring_an_object_back(store: Pool, pool: PoolView) -> None:
    with pytest.raises(ObjectNotFound):
        omap.update_keys(store, "gone", {"a": "1"})
    assert "gone" not in pool.objects()


def test_removing_an_object_that_is_gone_is_fine(store: Pool, pool: PoolView) -> None:
    omap.create_object(store, "one", {"a": "1"})
    omap.remove_object(store, "one")
    omap.remove_object(store, "one")
    assert "one" not in pool.objects()


def test_a_name_with_a_nul_is_refused_and_not_cut_short(store: Pool, pool: PoolView) -> None:
    with pytest.raises(InvalidArgument, match="NUL"):
        omap.claim_key(store, "directory", "name\0rest", "value")
    with pytest.raises(InvalidArgument, match="NUL"):
        omap.read_keys(store, "directory", ["name\0rest"])
    assert "directory" not in pool.objects()


def test_a_value_that_the_binding_would_compare_wrongly_is_refused(store: Pool) -> None:
    omap.claim_key(store, "directory", "name", "ü")
    with pytest.raises(InvalidArgument, match="ASCII"):
        omap.remove_key_if(store, "directory", "name", "ü")


def test_every_primitive_is_one_operation(store: Pool, counter: OperationCounter) -> None:
    omap.create_object(store, "warm", {"a": "1"})
    for step in (
        lambda: omap.create_object(store, "one", {"a": "1", "b": "2"}),
        lambda: omap.read_keys(store, "one", ["a", "b"]),
        lambda: omap.read_page(store, "one"),
        lambda: omap.set_keys(store, "one", {"c": "3"}),
        lambda: omap.update_keys(store, "one", {"d": "4"}),
        lambda: omap.claim_key(store, "directory", "name", "value"),
        lambda: omap.remove_key_if(store, "directory", "name", "value"),
        lambda: omap.remove_object(store, "one"),
    ):
        with counter.counting() as count:
            step()
        assert count.operations == 1


def test_a_hung_cluster_ends_every_primitive_in_time(
    store: Pool, hung: Callable[[], AbstractContextManager[None]]
) -> None:
    omap.create_object(store, "one", {"a": "1"})
    with hung():
        for step in (
            lambda: omap.read_keys(store, "one", ["a"]),
            lambda: omap.set_keys(store, "one", {"a": "2"}),
            lambda: omap.claim_key(store, "directory", "name", "value"),
        ):
            with pytest.raises(BackendTimeout):
                step()


def test_writes_that_timed_out_are_done_before_what_the_same_client_asks_later(
    store: Pool, hung: Callable[[], AbstractContextManager[None]]
) -> None:
    with hung(), pytest.raises(BackendTimeout):
        omap.create_object(store, "late", {"a": "1"})
    omap.remove_object(store, "late")
    with pytest.raises(ObjectNotFound):
        omap.read_keys(store, "late", ["a"])
