import errno

import pytest

from csi_host_rbd.ceph import failures
from csi_host_rbd.ceph.bindings import rados, rbd
from csi_host_rbd.ceph.failures import translated, translated_connect

_EXPECTED = [
    (rbd.ImageNotFound("x", errno=errno.ENOENT), failures.ImageNotFound),
    (rados.ObjectNotFound("x", errno=errno.ENOENT), failures.ObjectNotFound),
    (rbd.ImageExists("x", errno=errno.EEXIST), failures.ImageExists),
    (rados.ObjectExists("x", errno=errno.EEXIST), failures.ObjectExists),
    (rados.OSError("x", errno=errno.ECANCELED), failures.KeyMismatch),
    (rbd.ImageBusy("x", errno=errno.EBUSY), failures.ImageBusy),
    (rbd.ImageHasSnapshots("x", errno=errno.ENOTEMPTY), failures.ImageHasSnapshots),
    (rbd.ReadOnlyImage("x", errno=errno.EROFS), failures.ImageReadOnly),
    (rados.TimedOut("x", errno=errno.ETIMEDOUT), failures.BackendTimeout),
    (rbd.Timeout("x", errno=errno.ETIMEDOUT), failures.BackendTimeout),
    (rados.OSError("x", errno=-errno.ETIMEDOUT), failures.BackendTimeout),
    (rados.OSError("x", errno=errno.ENOTCONN), failures.BackendUnavailable),
    (rados.ConnectionShutdown("x", errno=108), failures.Blocklisted),
    (rbd.ConnectionShutdown("x", errno=108), failures.Blocklisted),
    (rados.PermissionError("x", errno=errno.EPERM), failures.PermissionDenied),
    (rbd.PermissionError("x", errno=errno.EPERM), failures.PermissionDenied),
    (rados.PermissionDeniedError("x", errno=errno.EACCES), failures.PermissionDenied),
    (rados.NoSpace("x", errno=errno.ENOSPC), failures.PoolFull),
    (rbd.DiskQuotaExceeded("x", errno=errno.EDQUOT), failures.PoolFull),
    (rbd.InvalidArgument("x", errno=errno.EINVAL), failures.ArgumentRefused),
    (rbd.ArgumentOutOfRange("x", errno=errno.EDOM), failures.ArgumentRefused),
    (rados.IOError("x", errno=errno.EIO), failures.CephRefused),
    (rados.RadosStateError("x"), failures.BackendUnavailable),
    (rbd.Error("x"), failures.CephRefused),
]


@pytest.mark.parametrize(("raised", "expected"), _EXPECTED, ids=lambda one: getattr(one, "__name__", None))
def test_what_the_bindings_raise_becomes_the_fact(raised: Exception, expected: type[Exception]) -> None:
    with pytest.raises(expected) as caught, translated("creating image pool/name"):
        raise raised
    assert type(caught.value) is expected
    assert str(caught.value).startswith("creating image pool/name: ")
    assert caught.value.__cause__ is raised


def test_other_exceptions_pass() -> None:
    with pytest.raises(ZeroDivisionError), translated("dividing"):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EACCES, failures.AuthenticationRefused),
        (errno.EPERM, failures.AuthenticationRefused),
        (errno.ETIMEDOUT, failures.BackendUnavailable),
        (errno.EINVAL, failures.BackendUnavailable),
        (errno.EIO, failures.BackendUnavailable),
    ],
)
def test_connecting_ends_with_an_outcome_that_never_quotes_the_binding(number: int, expected: type[Exception]) -> None:
    with pytest.raises(expected) as caught, translated_connect("csi", "ceph-a:3300"):
        raise rados.OSError("the key is SECRET", errno=number)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__suppress_context__
