"""Which size a network block device is given; the real kernel is in tests/kernel."""

import json

import pytest

from csi_host.errors import Unavailable
from csi_host.testing.runner import Answer
from csi_host_rbd.attach.nbd import SizeNotKnown
from csi_host_rbd.testing.nbd_kernel import REQUEST, SPEC, NbdKernel


def test_a_device_gets_the_size_that_the_cluster_says_and_not_the_one_that_is_wished(nbd_kernel: NbdKernel) -> None:
    nbd_kernel.attacher().attach(REQUEST)
    nbd_kernel.run.install("rbd", Answer(stdout=json.dumps({"size": 3 << 20})))
    assert nbd_kernel.attacher().grow(SPEC, at_least=9 << 20) == 3 << 20
    assert nbd_kernel.sizes_told == [(900, 3 << 20, "v1")]
    (info,) = nbd_kernel.run.ran("rbd")
    assert info.argv[-9:] == (
        *("info", "--pool", "rbd", "--namespace", "tenant", "--image", "one", "--format", "json"),
    )


@pytest.mark.parametrize("cookie", ["v1", ""])
def test_without_the_key_no_device_is_made_longer(nbd_kernel: NbdKernel, cookie: str) -> None:
    """A size above the image's would let the filesystem grow past the image's end."""
    nbd_kernel.connect(nbd_kernel.start("rbd-nbd", "map", "rbd/tenant/one", "--cookie=v1"), cookie=cookie)
    assert nbd_kernel.attacher().grow(SPEC) == nbd_kernel.attacher().grow(SPEC, at_least=1 << 20) == 1 << 20
    with pytest.raises(SizeNotKnown, match=f"has {1 << 20} bytes, not {2 << 20}"):
        nbd_kernel.attacher().grow(SPEC, at_least=2 << 20)
    assert nbd_kernel.sizes_told == []
    # rbd-nbd itself has told the nbd_kernel.
    (nbd_kernel.root / "block/nbd900/size").write_text(f"{(3 << 20) // 512}\n")
    assert nbd_kernel.attacher().grow(SPEC, at_least=2 << 20) == 3 << 20


def test_a_size_that_the_device_does_not_take_is_not_final(nbd_kernel: NbdKernel) -> None:
    """Without a cookie the kernel takes no size from us: rbd-nbd's own must arrive."""
    nbd_kernel.connect(nbd_kernel.start("rbd-nbd", "map", "rbd/tenant/one"), cookie="")
    nbd_kernel.kept.keep(REQUEST)
    nbd_kernel.run.install("rbd", Answer(stdout=json.dumps({"size": 3 << 20})))
    with pytest.raises(Unavailable, match=f"has {3 << 20} bytes"):
        nbd_kernel.attacher().grow(SPEC)
    (nbd_kernel.root / "block/nbd900/size").write_text(f"{(3 << 20) // 512}\n")
    assert nbd_kernel.attacher().grow(SPEC) == 3 << 20
