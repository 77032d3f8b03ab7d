import itertools
from contextlib import ExitStack

import pytest

from csi_host.errors import OperationPending
from csi_host.locks import Operation, OperationLocks
from csi_host.request import Request, serving

CREATE, CLONE, DELETE, RESTORE, EXPAND = (
    Operation.CREATE,
    Operation.CLONE,
    Operation.DELETE,
    Operation.RESTORE,
    Operation.EXPAND,
)
# requested -> held, as ceph-csi has it; every other pair goes together.
CONFLICTS = {
    (CLONE, EXPAND),
    (DELETE, RESTORE),
    (DELETE, EXPAND),
    (RESTORE, DELETE),
    (EXPAND, CREATE),
    (EXPAND, CLONE),
    (EXPAND, DELETE),
}


@pytest.mark.parametrize(("requested", "held"), list(itertools.product(Operation, Operation)))
def test_two_operations_on_one_id_go_together_unless_the_table_forbids_it(
    requested: Operation, held: Operation
) -> None:
    locks = OperationLocks()
    with locks.hold(held, "handle"), ExitStack() as stack:
        if (requested, held) in CONFLICTS:
            with pytest.raises(OperationPending, match=f"{held} operation with given id handle already exists"):
                stack.enter_context(locks.hold(requested, "handle"))
            assert len(locks.holders()["handle"]) == 1
        else:
            stack.enter_context(locks.hold(requested, "handle"))
            assert len(locks.holders()["handle"]) == 2
    assert not locks.holders()


def test_different_ids_never_conflict() -> None:
    locks = OperationLocks()
    with locks.hold(EXPAND, "a"), locks.hold(CLONE, "b"):
        assert set(locks.holders()) == {"a", "b"}


def test_the_refusal_names_the_holder() -> None:
    locks = OperationLocks()
    with (
        serving(Request(rpc="ControllerExpandVolume", request_id="req-9")),
        locks.hold(EXPAND, "a"),
        pytest.raises(OperationPending, match=r"^an Expand .*ControllerExpandVolume \(request req-9\)"),
        locks.hold(CLONE, "a"),
    ):
        pytest.fail("the volume is being expanded")


def test_an_operation_holds_until_the_last_of_its_kind_has_ended() -> None:
    locks = OperationLocks()
    with locks.hold(CLONE, "a"):
        with locks.hold(CLONE, "a"):
            pass
        with pytest.raises(OperationPending, match="a Clone operation"), locks.hold(EXPAND, "a"):
            pytest.fail("a clone is still going on")
    with locks.hold(EXPAND, "a"):
        pass


def test_a_failure_within_gives_the_lock_back() -> None:
    locks = OperationLocks()
    with pytest.raises(ValueError, match="boom"), locks.hold(EXPAND, "a"):
        raise ValueError("boom")
    assert not locks.holders()
