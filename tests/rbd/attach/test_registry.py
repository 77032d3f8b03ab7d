from pathlib import Path

import pytest

from csi_host.errors import FailedPrecondition, InvalidArgument
from csi_host.testing.runner import ScriptedRunner
from csi_host_rbd.attach.attacher import FeaturesNotSupported
from csi_host_rbd.attach.qemu import QemuAttacher
from csi_host_rbd.attach.registry import Attachers, NoMounterServes

QEMU = QemuAttacher(run=ScriptedRunner(), directory=Path("/nonexistent"))


def test_a_mounter_is_found_by_its_name_and_by_default() -> None:
    assert Attachers([QEMU], default="rbd").named("qemu") is QEMU
    assert Attachers([QEMU], default="qemu").named("") is QEMU
    assert list(Attachers([QEMU], default="rbd")) == [QEMU]


def test_a_name_that_is_no_mounter_is_a_mistake_in_the_request() -> None:
    with pytest.raises(InvalidArgument, match="expected one of qemu, got 'quemu'"):
        Attachers([QEMU], default="rbd").named("quemu")


class Picky(QemuAttacher):
    """An attacher that this machine lacks something for, or that knows no feature."""

    def __init__(self, name: str, *, lacks: str = "", knows: int = 0) -> None:
        super().__init__(run=ScriptedRunner(), directory=Path("/nonexistent"))
        self.name = name  # type: ignore[misc]  # several of one class stand for several mounters
        self._lacks, self._knows = lacks, knows

    def check(self) -> None:
        if self._lacks:
            raise FailedPrecondition(f"{self._lacks} is missing")

    def check_features(self, features: int) -> None:
        if features & ~self._knows:
            raise FeaturesNotSupported(f"{self.name} does not know {features & ~self._knows:#x}")


KERNEL, DAEMON = Picky("rbd", knows=0x3D), Picky("rbd-nbd", knows=0x7F)


def test_the_mounter_that_is_asked_for_is_chosen_when_it_knows_the_images_features() -> None:
    assert Attachers([KERNEL, DAEMON], default="rbd").choose("", 0x3D, try_others=True) is KERNEL
    assert Attachers([KERNEL, DAEMON], default="rbd").choose("rbd-nbd", 0x7D) is DAEMON


def test_a_feature_that_the_mounter_does_not_know_is_refused_unless_others_may_be_tried() -> None:
    attachers = Attachers([KERNEL, DAEMON], default="rbd")
    with pytest.raises(FeaturesNotSupported, match="rbd does not know 0x40"):
        attachers.choose("rbd", 0x7D)
    assert attachers.choose("rbd", 0x7D, try_others=True) is DAEMON


def test_a_mounter_that_this_machine_has_not_everything_for_is_passed_over_too() -> None:
    attachers = Attachers([Picky("rbd", lacks="/sys/bus/rbd"), DAEMON], default="rbd")
    assert attachers.choose("rbd", 0x3D, try_others=True) is DAEMON


def test_when_no_mounter_will_do_the_error_says_what_each_lacks() -> None:
    attachers = Attachers([KERNEL, Picky("rbd-nbd", lacks="program rbd-nbd")], default="rbd")
    with pytest.raises(NoMounterServes, match=r"rbd: rbd does not know 0x40; rbd-nbd: program rbd-nbd is missing"):
        attachers.choose("rbd", 0x7D, try_others=True)
