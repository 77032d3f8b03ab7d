"""A CSI driver whose volumes live in this machine's memory."""
