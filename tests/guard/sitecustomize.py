"""Imported by every Python process that a test starts: sockets to anything but loopback are refused and reported.

An audit hook sees what Python's socket module does, whatever library asks for it. What it refuses is also written to
the file named by MMAIP_V_SOCKET_LOG, so that a child that swallows the error is caught all the same.

One exception can be made, for the children of one test: MMAIP_V_SOCKET_NET names a private subnet (like 10.77.1.0/30)
between network namespaces that the test has made on this machine; from there no route leads anywhere else.
"""

import ipaddress
import os
import sys


def _outside(host):
    """Whether a host is anything but loopback, this machine's unspecified address or a local socket path."""
    if host is None or host in ("", b"", "localhost", b"localhost", "ip6-localhost"):
        return False
    text = host.decode(errors="replace") if isinstance(host, bytes) else str(host)
    try:
        address = ipaddress.ip_address(text.split("%")[0])
    except ValueError:
        return text != os.uname().nodename  # this machine's own name is looked up by torch.distributed
    between = os.environ.get("MMAIP_V_SOCKET_NET")
    if between and ipaddress.ip_network(between).is_private and address in ipaddress.ip_network(between):
        return False
    return not (address.is_loopback or address.is_unspecified)


def _watch(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        if not isinstance(address, tuple) or not _outside(address[0]):
            return
        target = f"{address[0]}:{address[1]}"
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        if not _outside(args[0]):
            return
        target = str(args[0])
    else:
        return
    log = os.environ.get("MMAIP_V_SOCKET_LOG")
    if log:
        with open(log, "a", encoding="utf-8") as stream:
            stream.write(f"{event} to {target} by process {os.getpid()} ({' '.join(sys.argv[:3])})\n")
    raise PermissionError(f"a test may not reach beyond loopback: {event} to {target}")


if os.environ.get("MMAIP_V_SOCKET_LOG"):
    sys.addaudithook(_watch)
