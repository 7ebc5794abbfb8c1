"""HTTP endpoint of a node: `/live` and `/ready` for probes, `/metrics` for Prometheus."""

from __future__ import annotations

import json
import re
import socket
import socketserver
import sys
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector

from gfgw_prod.process.exit_codes import UserError
from gfgw_prod.telemetry.health import Health

FRESH_SECONDS = 1.0  # for which a page of metrics is reused: many scrapers cost as much as one
LONGEST_SECONDS = 10.0  # of a connection, however slow its client
MOST_CONNECTIONS = 512  # at once; further ones are refused
LONGEST_HEAD = 1 << 14  # bytes of a request line and its headers
PLAIN = "text/plain; charset=utf-8"
END = re.compile(rb"\n\r?\n")  # of a head


class Endpoint:
    """HTTP server in daemon threads: it delays neither a step nor the end of the process.

    `/live` and `/ready` answer 200 or 503 with a line of JSON from `Health`. `/metrics` serves ``registry``. There are
    no other pages, and nothing of a request is stored, executed or looked up.

    Raises:
        UserError: if the port cannot be bound.
    """

    def __init__(self, address: str, port: int, health: Health):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        try:
            # The address may be IPv4, IPv6 or a name.
            family, *_, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            self._server = _Server(family, place, _Responder(self.registry, health))
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "no such address"
            other = "choose a free one, and another one for each node of a job on the same host"
            raise UserError(
                f"telemetry.prometheus_port {port} on {address} cannot be used ({reason}); {other}"
            ) from None
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="endpoint", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the server and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Pages:
    """Pages of metrics by format, rendered at most once a second."""

    def __init__(self, registry: CollectorRegistry):
        self._registry, self._lock = registry, threading.Lock()
        self._made: dict[str, tuple[float, bytes]] = {}

    def get(self, accept: str) -> tuple[str, bytes]:
        """Content type and page."""
        encoder, kind = choose_encoder(accept)
        with self._lock:
            when, page = self._made.get(kind, (0.0, b""))
            if not page or time.monotonic() - when >= FRESH_SECONDS:
                page = encoder(self._registry)
                self._made[kind] = time.monotonic(), page
        return kind, page


class _Responder:
    """Parses a request and makes the response. ``http.server``'s parser takes as long as everything else together."""

    def __init__(self, metrics: CollectorRegistry, health: Health):
        self._probes, self._pages = {b"/live": health.live, b"/ready": health.ready}, _Pages(metrics)

    def respond(self, head: bytes) -> bytes:
        """The whole response to the request with this head."""
        status, kind, body = self._route(head)
        answer = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return answer.encode() + body

    def _route(self, head: bytes) -> tuple[HTTPStatus, str, bytes]:
        if len(head) > LONGEST_HEAD:
            return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, PLAIN, b"the request is too long\n"
        line, *headers = head.split(b"\n")
        words = line.split()
        if len(words) != 3 or not words[2].startswith(b"HTTP/1.") or not END.search(head):
            return HTTPStatus.BAD_REQUEST, PLAIN, b"not an HTTP request\n"
        if words[0] != b"GET":
            return HTTPStatus.METHOD_NOT_ALLOWED, PLAIN, b"only GET is supported\n"
        path = words[1].partition(b"?")[0]
        if path == b"/metrics":
            accept = (header.partition(b":")[2] for header in headers if header.lower().startswith(b"accept:"))
            return HTTPStatus.OK, *self._pages.get(next(accept, b"").decode("latin-1").strip())
        if path in self._probes:
            answer = self._probes[path]()
            status = HTTPStatus.OK if answer["ok"] else HTTPStatus.SERVICE_UNAVAILABLE
            return status, "application/json", f"{json.dumps(answer)}\n".encode()
        return HTTPStatus.NOT_FOUND, PLAIN, b"there are /live, /ready and /metrics\n"


class _Server(socketserver.ThreadingTCPServer):
    # Not http.server's, which asks the name service for this host's full name and may block.
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512

    def __init__(self, family: socket.AddressFamily, place: Any, responder: _Responder):
        self.address_family, self._responder = family, responder
        self._since: dict[socket.socket, float] = {}  # open connections; single dict operations are atomic
        super().__init__(place, socketserver.BaseRequestHandler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is room for one more connection."""
        if len(self._since) >= MOST_CONNECTIONS:
            return False
        self._since[request] = time.monotonic()
        return True

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer a request, in a thread."""
        request.settimeout(LONGEST_SECONDS)
        head = b""
        while not END.search(head) and len(head) <= LONGEST_HEAD and (more := request.recv(LONGEST_HEAD)):
            head += more
        request.sendall(self._responder.respond(head))

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        self._since.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Cut connections that have been open too long; called several times a second."""
        now = time.monotonic()
        for request, since in list(self._since.items()):
            if now - since > LONGEST_SECONDS:
                self._since.pop(request, None)
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)  # wakes its thread, which closes it

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that went away; report any other error."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)
