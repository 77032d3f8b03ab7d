from pathlib import Path

import pytest

from csi_host.errors import InvalidArgument
from csi_host.testing.runner import ScriptedRunner
from csi_host_rbd.attach.qemu import QemuAttacher
from csi_host_rbd.attach.registry import Attachers, MounterNotServed

QEMU = QemuAttacher(run=ScriptedRunner(), directory=Path("/nonexistent"))


def test_a_mounter_is_found_by_its_name_and_by_default() -> None:
    assert Attachers([QEMU], default="rbd").named("qemu") is QEMU
    assert Attachers([QEMU], default="qemu").named("") is QEMU
    assert list(Attachers([QEMU], default="rbd")) == [QEMU]


@pytest.mark.parametrize("mounter", ["rbd", "rbd-nbd"])
def test_a_mounter_of_ceph_csi_that_is_not_served_says_what_to_use_instead(mounter: str) -> None:
    with pytest.raises(MounterNotServed, match=f"mounter {mounter} is not served.*'mounter: qemu' in the StorageClass"):
        Attachers([QEMU], default="qemu").named(mounter)


def test_a_default_that_is_not_served_is_told_from_a_choice() -> None:
    with pytest.raises(MounterNotServed, match="the default"):
        Attachers([QEMU], default="rbd").named("")


def test_a_name_that_is_no_mounter_is_a_mistake_in_the_request() -> None:
    with pytest.raises(InvalidArgument, match="expected one of rbd, rbd-nbd, qemu, got 'quemu'"):
        Attachers([QEMU], default="rbd").named("quemu")
