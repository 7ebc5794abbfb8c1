"""The HTTP endpoint of a node: `/live` and `/ready` for probes, `/metrics` for Prometheus."""

from __future__ import annotations

import json
import socket
import socketserver
import sys
import threading
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, MetricsHandler
from prometheus_client.process_collector import ProcessCollector

from gfgw_prod.resilience.exit_codes import UserError
from gfgw_prod.telemetry.health import Health


class Endpoint:
    """Answers from threads of its own, which do not hold up the end of the process.

    `/live` and `/ready` answer 200 or 503, with what `Health` says as a line of JSON. `/metrics` serves ``registry``.

    Raises:
        UserError: if the port cannot be bound.
    """

    def __init__(self, address: str, port: int, health: Health):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        try:
            # An address may be of either family, or a name.
            family, *_, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            self._server = _Server(family, place, _handler(self.registry, health))
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "no such address"
            raise UserError(
                f"telemetry.prometheus_port {port} on {address} cannot be used ({reason}); choose a free one"
            ) from None
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="endpoint", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Frees the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(socketserver.ThreadingTCPServer):
    # Not http.server's, which asks the name service for this host's full name and may wait for it.
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 32

    def __init__(self, family: socket.AddressFamily, place: Any, handler: type[MetricsHandler]):
        self.address_family = family
        super().__init__(place, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news; anything else is an error of ours."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _handler(metrics: CollectorRegistry, health: Health) -> type[MetricsHandler]:
    pages = {"/live": health.live, "/ready": health.ready}

    class Handler(MetricsHandler):
        registry = metrics
        timeout = 10  # seconds for a client to say what it wants

        def do_GET(self) -> None:  # noqa: N802 - named by the standard library
            path = urlsplit(self.path).path
            if path == "/metrics":
                super().do_GET()
            elif path in pages:
                answer = pages[path]()
                self._reply(200 if answer["ok"] else 503, "application/json", json.dumps(answer))
            else:
                self._reply(404, "text/plain; charset=utf-8", "there are /live, /ready and /metrics")

        def _reply(self, status: int, kind: str, line: str) -> None:
            body = f"{line}\n".encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
