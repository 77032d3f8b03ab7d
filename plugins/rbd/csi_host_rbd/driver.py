"""The rbd driver, put together."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from csi_host.driver import Driver, HostContext
from csi_host_rbd.attach.client import RbdClient
from csi_host_rbd.attach.kept_requests import KeptRequests
from csi_host_rbd.attach.keyring import Keyring
from csi_host_rbd.attach.krbd import KrbdAttacher
from csi_host_rbd.attach.nbd import NbdAttacher
from csi_host_rbd.attach.qemu import QemuAttacher
from csi_host_rbd.attach.registry import Attachers
from csi_host_rbd.backend import Backend
from csi_host_rbd.ceph.connections import Connections, Timeouts
from csi_host_rbd.ceph.groups import can_clone_group_snapshots
from csi_host_rbd.ceph.leases import LeaseCheck
from csi_host_rbd.ceph.writes import WriteObserver, Writes
from csi_host_rbd.chains import Chains
from csi_host_rbd.changed_blocks import ChangedBlocks
from csi_host_rbd.cluster_mapping import ClusterMapping
from csi_host_rbd.clusters import Clusters
from csi_host_rbd.contents import Contents
from csi_host_rbd.controller import RbdControllerServer, Sights
from csi_host_rbd.controller_secret import ControllerSecret
from csi_host_rbd.encryption.sections import KmsSections
from csi_host_rbd.encryption.service import Encryption
from csi_host_rbd.group_controller import RbdGroupControllerServer
from csi_host_rbd.group_locks import GroupLocks
from csi_host_rbd.group_members import Members
from csi_host_rbd.group_snapshots import GroupSnapshots
from csi_host_rbd.image_metadata import NamesOnImages
from csi_host_rbd.listed_snapshots import SeenSnapshots
from csi_host_rbd.listed_volumes import SeenVolumes
from csi_host_rbd.listing import Listing
from csi_host_rbd.making import VolumeMaker
from csi_host_rbd.modifying import VolumeModifier
from csi_host_rbd.node.devices import Devices
from csi_host_rbd.node.healer import Healer, RbdDriver
from csi_host_rbd.node.server import RbdNodeServer
from csi_host_rbd.options import RbdOptions
from csi_host_rbd.places import Places
from csi_host_rbd.pool_capacity import Capacities
from csi_host_rbd.pool_usage import PoolFigures
from csi_host_rbd.read_affinity import ReadAffinity
from csi_host_rbd.removal import Removal
from csi_host_rbd.reservations import SNAPSHOTS, VOLUMES
from csi_host_rbd.shared_locks import NoSharedLocks, RadosLocks, SharedLocks
from csi_host_rbd.snapshot_metadata import RbdSnapshotMetadataServer
from csi_host_rbd.snapshots import Snapshots
from csi_host_rbd.volumes import Volumes


def create_driver(
    context: HostContext, *, ceph_settings: Mapping[str, str] | None = None, observers: Sequence[WriteObserver] = ()
) -> Driver:
    """Build the driver that the host's settings ask for; no cluster is contacted before a call names one.

    ``ceph_settings`` are librados options that win over all others; ``observers`` hear of every durable step.
    """
    options = RbdOptions.of(context)
    connections = Connections(
        timeouts=Timeouts(connect=options.connect_timeout, operation=options.operation_timeout),
        ceph_conf=options.ceph_conf,
        settings=ceph_settings,
        writes=Writes(LeaseCheck(), *observers),
    )
    clusters = Clusters(options.clusters_file)
    shared_locks = _shared_locks(context, options)
    backend = Backend(
        clusters=clusters,
        connections=connections,
        instance_id=context.instance_id,
        controller_secret=ControllerSecret(options.controller_secret),
    )
    places = Places(backend, ClusterMapping(options.mapping_file), shared_locks)

    krbd, nbd, qemu = _attachers(context, options, clusters)
    attachers = Attachers([krbd, nbd, qemu], default=options.mounter)
    healer = Healer(nbd, context.volume_locks)

    def close() -> None:
        healer.stop()
        shared_locks.close()
        connections.close()

    parts = _parts(context, options, backend, places)
    return RbdDriver(
        controller=_controller(context, options, backend, places, parts),
        group_controller=_group_controller(context, places, parts) if can_clone_group_snapshots() else None,
        snapshot_metadata=RbdSnapshotMetadataServer(context, blocks=ChangedBlocks(places)),
        node=RbdNodeServer(
            context, places=places, encryption=parts.encryption, devices=Devices(attachers, run=context.run)
        ),
        healer=healer,
        close=close,
    )


def _attachers(
    context: HostContext, options: RbdOptions, clusters: Clusters
) -> tuple[KrbdAttacher, NbdAttacher, QemuAttacher]:
    client = RbdClient(run=context.run, ceph_conf=options.ceph_conf, connect_timeout=options.connect_timeout)
    affinity = ReadAffinity(
        config_of=clusters.find,
        labels=context.node_labels,
        is_enabled=options.has_read_affinity,
        location_labels=options.crush_location_labels,
    )
    return (
        KrbdAttacher(run=context.run, client=client, extra_options=affinity.options),
        NbdAttacher(run=context.run, client=client, kept=KeptRequests(Keyring())),
        QemuAttacher(
            run=context.run,
            directory=options.qemu_directory,
            ceph_conf=options.ceph_conf,
            connect_timeout=options.connect_timeout,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What the Controller service and the GroupController service have in common."""

    removal: Removal
    chains: Chains
    encryption: Encryption
    contents: Contents
    names: NamesOnImages
    snapshots: Snapshots
    sights: Sights


def _parts(context: HostContext, options: RbdOptions, backend: Backend, places: Places) -> _Parts:
    removal = Removal(manager_timeout=options.manager_timeout)
    chains = Chains(options.limits, manager_timeout=options.manager_timeout)
    encryption = Encryption(kms_types=context.kms_types, sections=KmsSections(options.kms_file))
    contents = Contents(places=places, chains=chains, encryption=encryption, operation_locks=context.operation_locks)
    names = NamesOnImages(are_written=context.set_metadata, cluster_name=context.cluster_name)
    snapshots = Snapshots(
        places=places,
        contents=contents,
        chains=chains,
        removal=removal,
        names=names,
        encryption=encryption,
        snapshot_locks=context.snapshot_locks,
        operation_locks=context.operation_locks,
    )
    return _Parts(
        removal=removal,
        chains=chains,
        encryption=encryption,
        contents=contents,
        names=names,
        snapshots=snapshots,
        sights=_sights(backend, places, chains),
    )


def _controller(
    context: HostContext, options: RbdOptions, backend: Backend, places: Places, parts: _Parts
) -> RbdControllerServer:
    volumes = Volumes(
        places=places,
        maker=VolumeMaker(contents=parts.contents, removal=parts.removal, names=parts.names),
        removal=parts.removal,
        encryption=parts.encryption,
        volume_locks=context.volume_locks,
        operation_locks=context.operation_locks,
    )
    return RbdControllerServer(
        context,
        volumes=volumes,
        snapshots=parts.snapshots,
        sights=parts.sights,
        modifier=VolumeModifier(places=places, volume_locks=context.volume_locks),
        default_mounter=options.mounter,
        has_secret=backend.controller_secret.is_configured,
    )


def _group_controller(context: HostContext, places: Places, parts: _Parts) -> RbdGroupControllerServer:
    members = Members(
        places=places,
        contents=parts.contents,
        volume_locks=context.volume_locks,
        operation_locks=context.operation_locks,
    )
    group_snapshots = GroupSnapshots(
        places=places, members=members, snapshots=parts.snapshots, seen=parts.sights.snapshots, locks=GroupLocks()
    )
    return RbdGroupControllerServer(context, group_snapshots=group_snapshots)


def _sights(backend: Backend, places: Places, chains: Chains) -> Sights:
    figures = PoolFigures()
    volumes, snapshots = (
        Listing(backend=backend, kind=kind, letter=letter) for kind, letter in ((VOLUMES, "v"), (SNAPSHOTS, "s"))
    )
    return Sights(
        volumes=SeenVolumes(backend=backend, places=places, listing=volumes, figures=figures),
        snapshots=SeenSnapshots(places=places, chains=chains, listing=snapshots),
        capacities=Capacities(backend=backend, figures=figures),
    )


def _shared_locks(context: HostContext, options: RbdOptions) -> SharedLocks:
    if options.lock_backend == "memory":
        return NoSharedLocks()
    # A controller need not be given a node id.
    node = context.node_id or platform.node()
    return RadosLocks(instance_id=context.instance_id, node=node, lease_seconds=options.lock_lease)
