"""The rbd driver, put together."""

import platform
from collections.abc import Mapping, Sequence

from csi_host.driver import Driver, HostContext
from csi_host_rbd.attach.qemu import QemuAttacher
from csi_host_rbd.attach.registry import Attachers
from csi_host_rbd.backend import Backend
from csi_host_rbd.ceph.cluster import Connections, Timeouts
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
from csi_host_rbd.image_metadata import NamesOnImages
from csi_host_rbd.journal import SNAPSHOTS, VOLUMES
from csi_host_rbd.listed_snapshots import SeenSnapshots
from csi_host_rbd.listed_volumes import SeenVolumes
from csi_host_rbd.listing import Listing
from csi_host_rbd.making import VolumeMaker
from csi_host_rbd.modifying import VolumeModifier
from csi_host_rbd.node import RbdNodeServer
from csi_host_rbd.options import RbdOptions
from csi_host_rbd.places import Places
from csi_host_rbd.pool_capacity import Capacities
from csi_host_rbd.pool_usage import PoolFigures
from csi_host_rbd.removal import Removal
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
    shared_locks = _shared_locks(context, options)
    backend = Backend(
        clusters=Clusters(options.clusters_file),
        connections=connections,
        instance_id=context.instance_id,
        controller_secret=ControllerSecret(options.controller_secret),
    )
    qemu = QemuAttacher(
        run=context.run,
        directory=options.qemu_directory,
        ceph_conf=options.ceph_conf,
        connect_timeout=options.connect_timeout,
    )
    places = Places(backend, ClusterMapping(options.mapping_file), shared_locks)

    def close() -> None:
        shared_locks.close()
        connections.close()

    return Driver(
        controller=_controller(context, options, backend, places),
        snapshot_metadata=RbdSnapshotMetadataServer(context, blocks=ChangedBlocks(places)),
        node=RbdNodeServer(context, backend=backend, attachers=Attachers([qemu], default=options.mounter)),
        close=close,
    )


def _controller(context: HostContext, options: RbdOptions, backend: Backend, places: Places) -> RbdControllerServer:
    removal = Removal(manager_timeout=options.manager_timeout)
    chains = Chains(options.limits, manager_timeout=options.manager_timeout)
    encryption = Encryption(kms_types=context.kms_types, sections=KmsSections(options.kms_file))
    contents = Contents(places=places, chains=chains, encryption=encryption, operation_locks=context.operation_locks)
    names = NamesOnImages(are_written=context.set_metadata, cluster_name=context.cluster_name)
    volumes = Volumes(
        places=places,
        maker=VolumeMaker(contents=contents, removal=removal, names=names),
        removal=removal,
        encryption=encryption,
        volume_locks=context.volume_locks,
        operation_locks=context.operation_locks,
    )
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
    return RbdControllerServer(
        context,
        volumes=volumes,
        snapshots=snapshots,
        sights=_sights(backend, places, chains),
        modifier=VolumeModifier(places=places, volume_locks=context.volume_locks),
        default_mounter=options.mounter,
        has_secret=backend.controller_secret.is_configured,
    )


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
