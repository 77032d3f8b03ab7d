import pytest

from csi_host_rbd.attach.map_options import MapOptionsInvalid, has_option, options_of


@pytest.mark.parametrize(
    ("text", "krbd", "nbd"),
    [
        ("", "", ""),
        ("lock_on_read,queue_depth=1024", "lock_on_read,queue_depth=1024", ""),
        ("krbd:ms_mode=prefer-crc", "ms_mode=prefer-crc", ""),
        ("krbd:a,b=c; nbd:io-timeout=330,try-netlink", "a,b=c", "io-timeout=330,try-netlink"),
        ("nbd:rbd_cache=false;", "", "rbd_cache=false"),
        ("a;krbd:b", "a,b", ""),
        ("krbd:crush_location=zone:z1|host:n1,read_from_replica=localize", None, ""),
    ],
)
def test_each_mounter_gets_its_own_and_what_has_no_name_is_krbds(text: str, krbd: str | None, nbd: str) -> None:
    expected = text.removeprefix("krbd:") if krbd is None else krbd
    assert options_of(text, "rbd", "mapOptions") == expected
    assert options_of(text, "rbd-nbd", "mapOptions") == nbd
    assert options_of(text, "qemu", "mapOptions") == ""


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("cow:a", "cow:a"),
        ("crush_location=zone:z1", "need the mounter's name"),
        ("--keyfile", "--keyfile"),
        ("a b", "a b"),
        ("krbd:a=$(reboot)", "'a=…'"),
        ("krbd:name=admin", "name is the driver's"),
        ("krbd:secret=AQ", "secret is the driver's"),
        ("nbd:device=/dev/nbd0", "device"),
        ("nbd:cookie=mine", "cookie"),
        ("nbd:keyfile=/etc/shadow", "keyfile"),
        ("nbd:quiesce-hook=/bin/sh", "quiesce-hook"),
        ("nbd:rbd_plugins=evil", "rbd_plugins"),
        ("nbd:log-file=/etc/passwd", "log-file"),
        ("nbd:mon_host=10.0.0.1", "mon_host"),
    ],
)
@pytest.mark.parametrize("mounter", ["rbd", "rbd-nbd", "qemu"])
def test_what_could_name_something_else_is_refused_whoever_asks(text: str, named: str, mounter: str) -> None:
    with pytest.raises(MapOptionsInvalid, match=r"volume_context\[mapOptions\]") as caught:
        options_of(text, mounter, "mapOptions")
    assert named in str(caught.value)


def test_a_value_is_not_shown_as_it_may_be_a_key() -> None:
    with pytest.raises(MapOptionsInvalid) as caught:
        options_of("krbd:secret=AQA6fA==", "rbd", "mapOptions")
    assert "AQA6fA" not in str(caught.value)


def test_unmapping_has_options_of_its_own() -> None:
    assert options_of("krbd:force;nbd:unmap-timeout=10", "rbd", "unmapOptions") == "force"
    assert options_of("krbd:force;nbd:unmap-timeout=10", "rbd-nbd", "unmapOptions") == "unmap-timeout=10"
    with pytest.raises(MapOptionsInvalid, match=r"volume_context\[unmapOptions\].*exclusive"):
        options_of("nbd:exclusive", "rbd-nbd", "unmapOptions")


def test_an_option_is_known_by_its_name_however_it_is_written() -> None:
    assert has_option("io_timeout=3,try-netlink", "io-timeout")
    assert has_option("read_from_replica=localize", "read-from-replica")
    assert not has_option("io-timeout-more=3", "io-timeout")
    assert not has_option("", "io-timeout")
