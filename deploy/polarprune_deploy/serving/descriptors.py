"""File descriptors enough for as many connections as are allowed."""

import resource

OTHERS = 256
"""Of files, threads' events, gRPC's own connections."""


def allow_descriptors(connections: int) -> bool:
    """Raise the soft limit, as far as the hard one lets us.

    Args:
        connections: of each protocol.

    Returns:
        Whether that is enough: else connections run out before their bound does.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + OTHERS
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return True
    raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    return raised >= wanted
