"""An S3 bucket in this process: moto's server, and in front of it a proxy in which every request may meet a fault."""

from __future__ import annotations

import http.client
import itertools
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from moto.server import ThreadedMotoServer

SECRET = "hidden-secret-key"


@dataclass(frozen=True)
class Request:
    """What a client has sent."""

    method: str
    path: str  # with its query
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def is_new_object(self) -> bool:
        """Whether this is a conditional put."""
        return self.method == "PUT" and "If-None-Match" in self.headers


@dataclass(frozen=True)
class Answer:
    """What a server has sent."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


Forward = Callable[[Request], Answer]
# Given a request and the way to the server; no answer is a broken connection.
Fault = Callable[[Request, Forward], "Answer | None"]


def none(request: Request, forward: Forward) -> Answer | None:
    """Everything is well."""
    return forward(request)


def refused(status: int, code: str = "Trouble") -> Fault:
    """The server does nothing and says why."""
    body = f"<Error><Code>{code}</Code><Message>{SECRET}</Message></Error>".encode()
    return lambda request, forward: Answer(status, {"Content-Type": "application/xml"}, body)


def broken(request: Request, forward: Forward) -> Answer | None:
    """The request does not reach the server."""
    return None


def lost(request: Request, forward: Forward) -> Answer | None:
    """The server does what it is asked for, and its answer is lost."""
    forward(request)
    return None


class Faults:
    """The first requests that match meet one fault after the other; the others are served.

    Parameters
    ----------
    *faults : Fault
    at : callable
        Which requests meet them.
    """

    def __init__(self, *faults: Fault, at: Callable[[Request], bool]) -> None:
        self.left = list(faults)
        self._at = at
        self._lock = threading.Lock()

    def __call__(self, request: Request, forward: Forward) -> Answer | None:
        with self._lock:
            fault = self.left.pop(0) if self.left and self._at(request) else none
        return fault(request, forward)


class S3Server:
    """Buckets, and the faults on the way to them.

    Attributes
    ----------
    fault : Fault
        What each request meets.
    requests : list of Request
        Those that came, without their bodies.
    """

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.WARNING)  # or each request would be a line in every report
        self.fault: Fault = none
        self.requests: list[Request] = []
        self._moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._moto.start()
        self._address = self._moto.get_host_and_port()
        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._proxy.serve_forever, daemon=True)
        self._thread.start()
        self._numbers = itertools.count(1)

    def close(self) -> None:
        """Stop both servers."""
        self._proxy.shutdown()
        self._proxy.server_close()
        self._thread.join()
        self._moto.stop()

    def environment(self) -> dict[str, str]:
        """Variables that lead obstore here."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._proxy.server_address[1]}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }

    def make_bucket(self) -> str:
        """Make a new bucket, and give its name."""
        name = f"bucket-{next(self._numbers)}"
        assert self.forward(Request("PUT", f"/{name}")).status == 200
        return name

    def forward(self, request: Request) -> Answer:
        """Have a request served, past all faults."""
        connection = http.client.HTTPConnection(*self._address)
        try:
            connection.request(request.method, request.path, request.body, dict(request.headers))
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()


def _handler(server: S3Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.title(): value for name, value in self.headers.items()}
            server.requests.append(Request(self.command, self.path, headers))
            answer = server.fault(Request(self.command, self.path, headers, body), server.forward)
            if answer is None:
                self.close_connection = True
                return
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                    self.send_header(name, value)
            length = answer.headers.get("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                with suppress(BrokenPipeError, ConnectionResetError):  # by a client that has heard enough
                    self.wfile.write(answer.body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = serve  # noqa: N815  # the names that the base class calls

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
