"""Volumes on a node: staged, published, grown and taken away, on any attacher."""
