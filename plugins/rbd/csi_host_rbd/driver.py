"""The rbd driver, put together."""

from collections.abc import Mapping

from csi_host.driver import Driver, HostContext
from csi_host_rbd.attach.qemu import QemuAttacher
from csi_host_rbd.attach.registry import Attachers
from csi_host_rbd.backend import Backend
from csi_host_rbd.ceph.cluster import Connections, Timeouts
from csi_host_rbd.clusters import Clusters
from csi_host_rbd.controller import RbdControllerServer
from csi_host_rbd.node import RbdNodeServer
from csi_host_rbd.options import RbdOptions
from csi_host_rbd.volumes import Volumes


def create_driver(context: HostContext, *, ceph_settings: Mapping[str, str] | None = None) -> Driver:
    """Build the driver that the host's settings ask for; no cluster is contacted before a call names one.

    ``ceph_settings`` are librados options that win over all others.
    """
    options = RbdOptions.of(context)
    connections = Connections(
        timeouts=Timeouts(connect=options.connect_timeout, operation=options.operation_timeout),
        ceph_conf=options.ceph_conf,
        settings=ceph_settings,
    )
    backend = Backend(
        clusters=Clusters(options.clusters_file), connections=connections, instance_id=context.instance_id
    )
    volumes = Volumes(
        backend=backend,
        volume_locks=context.volume_locks,
        operation_locks=context.operation_locks,
        manager_timeout=options.manager_timeout,
        sets_metadata=context.set_metadata,
        cluster_name=context.cluster_name,
    )
    qemu = QemuAttacher(
        run=context.run,
        directory=options.qemu_directory,
        ceph_conf=options.ceph_conf,
        connect_timeout=options.connect_timeout,
    )
    return Driver(
        controller=RbdControllerServer(context, volumes=volumes),
        node=RbdNodeServer(context, backend=backend, attachers=Attachers([qemu], default=options.mounter)),
        close=connections.close,
    )
