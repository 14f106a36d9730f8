"""A piece of work that the system kills. It imports nothing, so that a worker starts at once."""

import os
import signal


def die_at_three(number: int) -> int:
    """Return the number; 3 kills the process."""
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number
