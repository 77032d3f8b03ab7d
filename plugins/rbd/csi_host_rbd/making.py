"""Volumes made: from nothing, from a snapshot or from another volume, and what an earlier call began taken over.

The journal's entry gets the image's id when everything else is done, so an image whose id is there is whole. One
without is taken over; one that is made from a source only when it is attached to its parent, else it is made anew.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Self

from csi_host.errors import Aborted, CsiError, OutOfRange
from csi_host_rbd.ceph import image_names, parents
from csi_host_rbd.ceph.create import ImageOptions
from csi_host_rbd.ceph.failures import ImageExists, ImageNotFound
from csi_host_rbd.ceph.image import Image, look_at_image, open_image
from csi_host_rbd.content_source import VolumeSource
from csi_host_rbd.contents import Blank, Content, Contents, drop_source_snapshot
from csi_host_rbd.encryption.service import check_source, differs, forget
from csi_host_rbd.encryption.state import read_state
from csi_host_rbd.errors import VolumeDiffers
from csi_host_rbd.image_metadata import NamesOnImages
from csi_host_rbd.image_naming import TEMPORARY_SUFFIX
from csi_host_rbd.parameters import VolumeParameters
from csi_host_rbd.places import Place
from csi_host_rbd.removal import Removal
from csi_host_rbd.reservations import Reservation
from csi_host_rbd.taking_back import take_back_after
from csi_host_rbd.volume import Volume, WantedVolume

_TAKE_OVER_ATTEMPTS = 5
_TAKE_OVER_PAUSE_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class _Found:
    """An image as it is: its id, its size in bytes and its metadata."""

    image_id: str
    size_bytes: int
    metadata: Mapping[str, str]

    @classmethod
    def of(cls, image: Image) -> Self:
        """Look at an open image."""
        return cls(image_id=image.image_id, size_bytes=image.size_bytes, metadata=image.metadata())


class HalfMade(ImageNotFound):
    """An image is there, but its cloning was cut off before it was attached to its source."""


class PassphraseInDoubt(Exception):
    """The image of an encrypted clone is there, and perhaps without a passphrase of its own: its source is needed."""


class VolumeMaker:
    """Makes volumes; the caller holds the lock of the name."""

    def __init__(self, *, contents: Contents, removal: Removal, names: NamesOnImages) -> None:
        self._contents = contents
        self._removal = removal
        self._names = names

    def make(self, wanted: WantedVolume, place: Place, secrets: Mapping[str, str]) -> Volume:
        """Make a volume that the journal does not know; raises what the source is unfit for."""
        with self._contents.opened(wanted.source, place, secrets) as content:
            content.check()
            _size(wanted, content)
            _check_keys(wanted, content)
            parameters, encryption = wanted.parameters, wanted.parameters.encryption
            reservation = place.volumes.reserve(
                wanted.name,
                prefix=parameters.name_prefix,
                owner=parameters.owner,
                kms_id=encryption.kms_id if encryption else "",
                encryption_type=encryption.encryption_type if encryption else "",
            )
            return self._make_image(wanted, place, reservation, content)

    def resume(self, wanted: WantedVolume, place: Place, found: Reservation, secrets: Mapping[str, str]) -> Volume:
        """Take over what an earlier call of this name left: a whole volume, or the beginning of one."""
        _check_encryption(wanted, found)
        try:
            return self._accept_with_passphrase(wanted, place, found, secrets)
        except HalfMade:
            self._removal.remove_image(place, found.pool, found.image_name)
        except ImageNotFound:
            if found.image_id:
                # There was a whole image, so this is a deletion that was cut off. It is finished first, and the new
                # volume gets a handle of its own: a DeleteVolume of the old one may be on its way.
                self._removal.finish_in_trash(place, found)
                _forget_passphrase(wanted, place, found)
                place.volumes.undo(found)
                return self.make(wanted, place, secrets)
            if wanted.source is not None and image_names.is_whole(found.pool, found.image_name):
                # One that it hangs on has gone, maybe for good: librbd lets a volume go of its parent while a snapshot
                # is taken of it. Nobody has been told of this image.
                self._removal.remove_image(place, found.pool, found.image_name)
        # One that was half made, or undone, may have got into the trash and no further.
        self._removal.finish_trashed(place, found.pool, found.image_name)
        return self._make_again(wanted, place, found, secrets)

    def _accept_with_passphrase(
        self, wanted: WantedVolume, place: Place, found: Reservation, secrets: Mapping[str, str]
    ) -> Volume:
        try:
            return self._accept(wanted, place, found)
        except PassphraseInDoubt:
            with self._contents.opened(wanted.source, place, secrets) as content:
                return self._accept(wanted, place, found, content)

    def _make_again(self, wanted: WantedVolume, place: Place, found: Reservation, secrets: Mapping[str, str]) -> Volume:
        """Make the image of a reservation; the uuid is kept: an image whose creation timed out may still appear.

        When nothing can be made of the source any more the reservation goes: nobody may ever ask again.
        """
        with ExitStack() as stack:
            try:
                content = stack.enter_context(self._contents.opened(wanted.source, place, secrets))
                content.check()
                _size(wanted, content)
                _check_keys(wanted, content)
            except CsiError as error:
                take_back_after(error, lambda: self._undo(wanted, place, found, Blank()))
                raise
            if isinstance(wanted.source, VolumeSource):
                self._removal.remove_intermediate(place, found.pool, found.image_name)
                # Under which name ceph-csi takes its snapshot of the source.
                content.withdraw(found.image_name + TEMPORARY_SUFFIX)
            return self._make_image(wanted, place, found, content)

    def _make_image(self, wanted: WantedVolume, place: Place, reservation: Reservation, content: Content) -> Volume:
        pool, name = reservation.pool, reservation.image_name
        try:
            size_bytes = content.make(pool, name, _size(wanted, content), _image_options(wanted.parameters))
            found = _Found(
                image_id=image_names.read_image_id(pool, name), size_bytes=size_bytes, metadata=content.metadata
            )
            content.withdraw(name)
            _copy_passphrase(wanted, place, reservation, found.image_id, content)
            volume = self._finish(wanted, place, reservation, found, size_bytes=_size(wanted, content))
        except ImageExists:
            return self._take_over(wanted, place, reservation, content)
        except Exception as error:
            take_back_after(error, lambda: self._undo(wanted, place, reservation, content))
            raise
        content.settle(pool, name)
        return volume

    def _accept(self, wanted: WantedVolume, place: Place, found: Reservation, content: Content | None = None) -> Volume:
        """Return the volume whose image is there, with what is missing around it; ``content`` is the opened source.

        Raises ImageNotFound, HalfMade, and without ``content`` PassphraseInDoubt.
        """
        is_begun = wanted.source is not None and not found.image_id
        if is_begun:
            _check_cloned(place, found)
        there = look_at_image(found.pool, found.image_name, _Found.of)
        if not is_begun:
            _check_size(wanted, there.size_bytes)
        elif wanted.keys is not None:
            if content is None:
                raise PassphraseInDoubt
            check_source(wanted.keys, content.key_source)
            _copy_passphrase(wanted, place, found, there.image_id, content)
        size_bytes = there.size_bytes if found.image_id else max(there.size_bytes, _asked(wanted))
        if isinstance(wanted.source, VolumeSource):
            drop_source_snapshot(place, found.pool, there.image_id, found.image_name)
        return self._finish(wanted, place, found, there, size_bytes=size_bytes)

    def _finish(
        self, wanted: WantedVolume, place: Place, reservation: Reservation, found: _Found, *, size_bytes: int
    ) -> Volume:
        """Give an image the names and the size that it is to have, and write down that it is whole."""
        changes = self._names.changes(
            wanted.parameters.metadata, present=found.metadata, is_copy=wanted.source is not None
        )
        keys = wanted.keys if wanted.source is None and read_state(found.metadata) is None else None
        if not reservation.image_id:
            # Of a volume that was whole before, ControllerModifyVolume may have changed what is set here.
            changes += wanted.modification.changes_of_new(found.metadata, is_copy=wanted.source is not None)
        if changes or keys is not None or found.size_bytes < size_bytes:
            with open_image(reservation.pool, image_id=found.image_id) as image:
                if keys is not None:
                    keys.prepare(image, str(place.handle(reservation)))
                changes.apply(image)
                if found.size_bytes < size_bytes:
                    image.resize(size_bytes)
        if reservation.image_id != found.image_id:
            place.volumes.store_image_id(reservation, found.image_id)
        return volume_of(place, reservation, size_bytes)

    def _take_over(self, wanted: WantedVolume, place: Place, reservation: Reservation, content: Content) -> Volume:
        """Go on where the image is there but could not be opened: another controller is making it, or was cut off.

        The other one is given time, as removing what it is just making would break it.
        """
        for _ in range(_TAKE_OVER_ATTEMPTS):
            time.sleep(_TAKE_OVER_PAUSE_SECONDS)
            with suppress(ImageNotFound):
                return self._accept(wanted, place, reservation, content)
        image_names.remove_remnants(reservation.pool, reservation.image_name)
        raise Aborted(f"the beginnings of image {reservation.image_name} were removed; ask again to have it made")

    def _undo(self, wanted: WantedVolume, place: Place, reservation: Reservation, content: Content) -> None:
        self._removal.remove_image(place, reservation.pool, reservation.image_name)
        content.withdraw(reservation.image_name)
        _forget_passphrase(wanted, place, reservation)
        place.volumes.withdraw(reservation)


def volume_of(place: Place, reservation: Reservation, size_bytes: int) -> Volume:
    """Return the volume of a reservation."""
    return Volume(
        volume_id=place.handle(reservation),
        size_bytes=size_bytes,
        pool=reservation.pool.name,
        journal_pool=reservation.journal_pool.name,
        namespace=reservation.pool.namespace,
        image_name=reservation.image_name,
    )


def _check_keys(wanted: WantedVolume, content: Content) -> None:
    """Raise what would keep the new image from getting its passphrase, before it is made."""
    if wanted.source is not None:
        check_source(wanted.keys, content.key_source)
    if wanted.keys is not None:
        wanted.keys.check()


def _check_encryption(wanted: WantedVolume, found: Reservation) -> None:
    difference = differs(wanted.parameters.encryption, found)
    if difference:
        raise VolumeDiffers(
            f"name: {wanted.name} is a volume already that is {difference}, which is not what parameters[encrypted], "
            "[encryptionKMSID] and [encryptionType] ask for"
        )


def _copy_passphrase(
    wanted: WantedVolume, place: Place, reservation: Reservation, image_id: str, content: Content
) -> None:
    """Give an encrypted clone its source's passphrase; for any other image there is nothing to do."""
    if wanted.keys is not None and content.key_source is not None:
        with open_image(reservation.pool, image_id=image_id) as image:
            wanted.keys.copy(image, str(place.handle(reservation)), source=content.key_source)


def _forget_passphrase(wanted: WantedVolume, place: Place, reservation: Reservation) -> None:
    if wanted.keys is not None:
        forget(wanted.keys, str(place.handle(reservation)))


def _size(wanted: WantedVolume, content: Content) -> int:
    """Return how big the volume is to be; raises OutOfRange when that is less than the source or above the limit."""
    asked = _asked(wanted)
    if wanted.source is None:
        return asked
    if asked and asked < content.size_bytes:
        raise OutOfRange(
            f"capacity_range.required_bytes: the source has {content.size_bytes} bytes, and {asked} were asked for; a "
            "volume cannot be smaller than what it is made from"
        )
    size_bytes = max(asked, content.size_bytes)
    wanted.capacity.check_limit(size_bytes)
    return size_bytes


def _asked(wanted: WantedVolume) -> int:
    """Return the size that was asked for; 0 when a volume that is made from a source is to have the source's."""
    return wanted.size_bytes if wanted.capacity.required_bytes or wanted.source is None else 0


def _check_cloned(place: Place, found: Reservation) -> None:
    """Raise HalfMade for an image that is not attached to its source, perhaps so that it cannot even be opened."""
    image_id = image_names.read_image_id(found.pool, found.image_name)
    if not parents.is_attached(found.pool, image_id, place.cluster.pool_at):
        raise HalfMade(f"the cloning of image {found.pool.spec(found.image_name)} was cut off")


def _check_size(wanted: WantedVolume, size_bytes: int) -> None:
    limit_bytes = wanted.capacity.limit_bytes
    if size_bytes < wanted.capacity.required_bytes or 0 < limit_bytes < size_bytes:
        raise VolumeDiffers(
            f"name: {wanted.name} is a volume of {size_bytes} bytes already, and capacity_range asks for "
            f"{wanted.capacity.required_bytes}" + (f" to {limit_bytes}" if limit_bytes else " or more")
        )


def _image_options(parameters: VolumeParameters) -> ImageOptions:
    return ImageOptions(
        features=parameters.features,
        order=parameters.striping.order,
        stripe_unit_bytes=parameters.striping.unit_bytes,
        stripe_count=parameters.striping.count,
        data_pool=parameters.data_pool,
    )
