"""The key of the mark in an image's metadata that says whether it has been formatted; see formatting."""

MARK_KEY = "csi-host/filesystem"
