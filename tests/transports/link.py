"""A way to a server on loopback that can break."""

from __future__ import annotations

import contextlib
import socket
import threading


class Link:
    """Passes bytes between a port of its own and the server's, until told to break."""

    def __init__(self, server_port: int) -> None:
        self.upstream = 0
        """Bytes from clients to the server."""
        self.cuts: list[int] = []
        """The first connections that carry so many bytes upstream break there, one for each."""
        self.cuts_down: list[int] = []
        """The same for bytes to clients."""
        self._server_port = server_port
        self._frozen = threading.Event()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed: the end
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                for end in (client, server):  # small packets at once, as without the link
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._pairs.append((client, server))
                for ends in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, up: bool) -> None:
        carried = 0
        with contextlib.suppress(OSError):
            while chunk := source.recv(1 << 16):
                if self._frozen.is_set():
                    continue
                target.sendall(chunk)
                carried += len(chunk)
                self.upstream += len(chunk) if up else 0
                cuts = self.cuts if up else self.cuts_down
                if cuts and carried >= cuts[0]:
                    cuts.pop(0)
                    break
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def freeze(self) -> None:
        """Carry nothing further, and tell nobody: as when a cable is pulled."""
        self._frozen.set()

    def cut(self) -> None:
        """End all connections."""
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])
