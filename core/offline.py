"""This process talks to no other host: an audit hook of the interpreter refuses look-ups and connections to any.

The page, the worker, the command line and the process that renders chat templates set it as they start. Libraries that
would fetch something (a model, a version check, a file that a browser names by its address) get a PermissionError instead.
What this does not do: stop compiled code that opens sockets by itself (the collectives of a distributed repair).
"""

import ipaddress
import sys

_ADDRESSED = {"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1, "socket.getnameinfo": 0}
_NAMED = {"socket.getaddrinfo": 0, "socket.gethostbyname": 0, "socket.gethostbyaddr": 0}
"""Audit events and the place of the address or the name in their arguments."""


def forbid_other_hosts(*own: str) -> None:
    """From now on refuse every look-up of and connection to a host but this machine; `own` are names it listens on."""
    allowed = {"localhost", "", *own}

    def watch(event: str, arguments: tuple) -> None:
        if not event.startswith("socket."):
            return
        if event in _ADDRESSED:
            address = arguments[_ADDRESSED[event]]
            host = address[0] if isinstance(address, tuple) else None  # a text is a path: a socket of this machine
        elif event in _NAMED:
            host = arguments[_NAMED[event]]
        else:
            return
        if host is not None and not _here(host, allowed):
            raise PermissionError(f"No request leaves this machine: {host!r} was refused.")

    sys.addaudithook(watch)


def _here(host: object, allowed: set[str]) -> bool:
    """Return whether `host` is this machine."""
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)
    if name in allowed:
        return True
    try:
        return ipaddress.ip_address(name.split("%")[0]).is_loopback
    except ValueError:
        return False
