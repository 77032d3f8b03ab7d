"""How an image becomes a block device: one Attacher per mounter name."""
