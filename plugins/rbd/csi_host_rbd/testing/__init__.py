"""What tests of the rbd driver share: looking into a pool with Ceph's own tools, and counting operations."""
