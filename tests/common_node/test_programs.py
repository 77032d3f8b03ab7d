import shutil

import pytest

from csi_host_common_node.programs import PACKAGES, ProgramMissing, needed_for, require


def test_every_missing_program_is_named_with_its_debian_package() -> None:
    with pytest.raises(ProgramMissing, match=r"mkfs\.xfs \(Debian package xfsprogs\), xyzzy$"):
        require(["mount", "mkfs.xfs", "xyzzy"], find=lambda name: "/bin/mount" if name == "mount" else None)


def test_programs_that_are_there_pass() -> None:
    require(["mount", "umount"], find=lambda name: f"/bin/{name}")


@pytest.mark.parametrize("fs_type", ["btrfs", "ext3", "ext4", "xfs", "iso9660"])
def test_what_a_filesystem_needs_has_a_package_and_is_installed_here(fs_type: str) -> None:
    assert set(needed_for(fs_type)) <= set(PACKAGES)
    require(needed_for(fs_type), find=shutil.which)
