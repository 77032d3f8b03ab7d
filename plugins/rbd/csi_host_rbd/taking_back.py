"""What becomes of what a call has made when it fails."""

from collections.abc import Callable

from csi_host.errors import Aborted, CsiError


def take_back_after(error: Exception, undo: Callable[[], None]) -> None:
    """Run ``undo``, unless the error leaves the outcome open: the CO asks again then, and the retry goes on from there.

    Raises Aborted, which is not final, when what was made cannot be removed yet.
    """
    if isinstance(error, CsiError) and not error.is_final:
        return
    try:
        undo()
    except CsiError as failure:
        # What is no CsiError may have a secret in its text.
        first = error if isinstance(error, CsiError) else type(error).__name__
        raise Aborted(f"{first}; and what was made could not be removed yet: {failure}") from error
