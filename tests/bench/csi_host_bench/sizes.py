"""How big the volumes are: small, as an image's size costs neither call anything, and emptying the trash takes less."""

VOLUME_BYTES = 16 * 1024**2
EXPANDED_BYTES = 32 * 1024**2
