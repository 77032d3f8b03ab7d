"""A volume's whole life on a real one-node Ceph, driven from outside with ``csi-host call``: what `make run` runs."""
