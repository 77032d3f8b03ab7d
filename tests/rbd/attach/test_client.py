"""How many images are mapped at once."""

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from csi_host.errors import Aborted
from csi_host.request import Request, serving
from csi_host.testing.runner import Answer, Command, ScriptedRunner
from csi_host_rbd.attach.attacher import AttachRequest, ImageSpec
from csi_host_rbd.attach.client import MapSlots, RbdClient

KEY = "AQA6fAFrwncNExAAd7IMxMF/byzrFzmGtkQFIw=="
ONE = AttachRequest(spec=ImageSpec(cluster_id="a", pool="rbd", image="one"), mon_host="a:6789", user="csi", key=KEY)
OF_ANOTHER_CLUSTER = replace(ONE, mon_host="b:6789")


def while_one_is_mapped(act: Callable[[RbdClient], object]) -> ScriptedRunner:
    """Return what ran while a cluster's only slot was taken, which ``act`` is called in."""

    def first(_: Command) -> Answer:
        run.install("rbd", Answer(stdout='{"size": 4096}'))
        with serving(Request(rpc="NodeStageVolume", request_id="-", deadline=time.monotonic() + 0.1)):
            act(client)
        return Answer()

    run = ScriptedRunner({"rbd": first, "rbd-nbd": Answer()})
    client = RbdClient(run=run, slots=MapSlots(1))
    client.map("rbd", ["map"], ONE)
    return run


def test_no_more_images_of_a_cluster_than_there_are_slots_are_mapped_at_once_by_whatever_program() -> None:
    def another(client: RbdClient) -> None:
        with pytest.raises(Aborted, match="1 images of the cluster at a:6789 are being mapped here already"):
            client.map("rbd-nbd", ["map"], ONE)

    assert while_one_is_mapped(another).ran("rbd-nbd") == []


def test_a_cluster_that_does_not_answer_holds_no_other_cluster_up() -> None:
    run = while_one_is_mapped(lambda client: client.map("rbd-nbd", ["map"], OF_ANOTHER_CLUSTER))
    assert len(run.ran("rbd-nbd")) == 1


def test_what_maps_nothing_takes_no_slot() -> None:
    run = while_one_is_mapped(lambda client: client.image_bytes(ONE))
    assert len(run.ran("rbd")) == 2


def test_a_slot_is_free_again_after_a_map_and_after_one_that_failed() -> None:
    run = ScriptedRunner({"rbd": Answer()})
    client = RbdClient(run=run, slots=MapSlots(1))
    client.map("rbd", ["map"], ONE)
    run.install("rbd", Answer(exit_code=1))
    with pytest.raises(Exception, match="exit code 1"):
        client.map("rbd", ["map"], ONE)
    run.install("rbd", Answer())
    client.map("rbd", ["map"], ONE)
    assert len(run.ran("rbd")) == 3
