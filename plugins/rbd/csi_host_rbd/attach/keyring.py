"""root's user keyring in the kernel (keyrings(7)), by system calls: Python has no library of them."""

import ctypes
import errno
import os

# The numbers of x86-64 and of the newer architectures' common table (asm-generic/unistd.h).
_SYSCALLS = {"x86_64": (248, 250), "aarch64": (217, 219), "riscv64": (217, 219), "loongarch64": (217, 219)}
_USER_KEYRING = -4
_SET_PERMISSIONS, _UNLINK, _SEARCH, _READ = 5, 9, 10, 11
# All for who possesses it and for its owner, root: a later process of root's does not possess it.
_PERMISSIONS = 0x3F3F0000
_MOST_BYTES = 4096


class Keyring:
    """Keys of type ``user``, readable by root; they are gone after a reboot. Every method raises OSError."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.syscall.restype = ctypes.c_long
        self._numbers = _SYSCALLS.get(os.uname().machine)

    def add(self, name: str, payload: bytes) -> None:
        """Put a key there, in place of one of the same name."""
        key = self._call(0, b"user", name.encode(), payload, ctypes.c_size_t(len(payload)), ctypes.c_int(_USER_KEYRING))
        self._control(_SET_PERMISSIONS, key, _PERMISSIONS)

    def read(self, name: str) -> bytes | None:
        """Return what a key holds, None when there is none of this name."""
        key = self._search(name)
        if key is None:
            return None
        buffer = ctypes.create_string_buffer(_MOST_BYTES)
        length = self._control(_READ, key, buffer, ctypes.c_size_t(_MOST_BYTES))
        return buffer.raw[:length]

    def remove(self, name: str) -> None:
        """Take a key away; fine when there is none."""
        key = self._search(name)
        if key is not None:
            self._control(_UNLINK, key, _USER_KEYRING)

    def _search(self, name: str) -> int | None:
        try:
            return self._control(_SEARCH, _USER_KEYRING, b"user", name.encode(), ctypes.c_int(0))
        except OSError as error:
            if error.errno in {errno.ENOKEY, errno.EKEYREVOKED, errno.EKEYEXPIRED}:
                return None
            raise

    def _control(self, operation: int, *arguments: object) -> int:
        return self._call(1, ctypes.c_int(operation), *arguments)

    def _call(self, which: int, *arguments: object) -> int:
        if self._numbers is None:
            raise OSError(errno.ENOSYS, f"keyrings are not known on {os.uname().machine}")
        words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
        result = int(self._libc.syscall(ctypes.c_long(self._numbers[which]), *words))
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result
