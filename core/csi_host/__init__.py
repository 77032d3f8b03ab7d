"""csi-host: a plugin-based host for Container Storage Interface drivers."""

__version__ = "0.1.0"
