"""What the rbd controller costs beside librbd itself, and what thousands of volumes do to it."""
