"""Hosts that publish documents, as clients do: a real https server under an authority of the tests' own.

The names and addresses are public ones. Only two things are not as outside: what the system's resolver says, and that a
connection to any of those addresses ends at this machine.
"""

import contextlib
import datetime
import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from oauth_relay import outbound_documents

NAMES = ("app.example.com", "two.example.com", "app.example.org", "keys.example.net")
PUBLIC = "93.184.216.34"
CLIENT_ID = "https://app.example.com/client.json"
LOOPBACK = "http://127.0.0.1:33418/callback"
Send = Callable[[bytes], Any]


def description(client_id: str = CLIENT_ID, **changes: Any) -> dict[str, Any]:
    """What a client says of itself at its address. A change of None leaves a field out."""
    said = {
        "client_id": client_id,
        "client_name": "Example App",
        "client_uri": "https://app.example.com/",
        "redirect_uris": ["https://app.example.com/callback", LOOPBACK],
        "token_endpoint_auth_method": "none",
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        **changes,
    }
    return {name: value for name, value in said.items() if value is not None}


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _certificate(subject: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: Any, names: Any = None) -> Any:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=names is None, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), False)
    return builder.sign(signer, hashes.SHA256())


def make_authority(folder: Path) -> tuple[Path, Path]:
    """An authority's certificate, and a server's with its key, as files."""
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("tests", authority_key, "tests", authority_key)
    server = _certificate(NAMES[0], key, "tests", authority_key, NAMES)
    ca, chain = folder / "ca.pem", folder / "server.pem"
    ca.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    raw_key = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain.write_bytes(server.public_bytes(serialization.Encoding.PEM) + raw_key)
    return ca, chain


class DocumentHost:
    """What stands at which path, and who asked. A page is an answer, or a function that sends one."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self.pages: dict[str, Any] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.ended = threading.Event()
        self._tls = tls
        host = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    host._answer(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True)
        with connection, connection.makefile("rb") as reader:
            path = reader.readline().decode().split(" ")[1]
            lines = iter(lambda: reader.readline().decode().strip(), "")
            self.asked.append((path, {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}))
            page = self.pages.get(path, answer(b"{}", status="404 Not Found"))
            if callable(page):
                page(connection.sendall)
            else:
                connection.sendall(page)

    def publish(self, path: str, content: Any, **headers: str) -> None:
        self.pages[path] = answer(json.dumps(content).encode(), **headers)

    def end(self) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()


def answer(body: bytes, *, status: str = "200 OK", **headers: str) -> bytes:
    """A whole HTTP answer. `content_type=""` leaves a header out."""
    fields = {"content_type": "application/json", "content_length": str(len(body)), **headers}
    head = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items() if value]
    return "\r\n".join([f"HTTP/1.1 {status}", *head, "", ""]).encode() + body


class Internet:
    """What names resolve to, and which addresses were connected to, for the process under test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, host: DocumentHost) -> None:
        self.host = host
        self.names: dict[str, Any] = {name: [PUBLIC] for name in NAMES}
        self.looked_up: list[str] = []
        self.connected: list[str] = []
        self._really = socket.getaddrinfo
        self._connect = socket.create_connection
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)
        monkeypatch.setattr(outbound_documents, "connect", self._dial)

    def _getaddrinfo(self, name: Any, *args: Any, **kwargs: Any) -> Any:
        if name not in self.names:
            return self._really(name, *args, **kwargs)
        self.looked_up.append(name)
        found = self.names[name]
        addresses = found() if callable(found) else found
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in addresses]

    def _dial(self, address: tuple[str, int], timeout: float) -> socket.socket:
        self.connected.append(address[0])
        return self._connect(("127.0.0.1", self.host.port), timeout)


@contextlib.contextmanager
def internet(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Internet]:
    """The process under test trusts the tests' authority, and finds the host behind every public name."""
    ca, chain = make_authority(folder)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(chain)
    host = DocumentHost(tls)
    monkeypatch.setenv("SSL_CERT_FILE", str(ca))
    outbound_documents._tls.cache_clear()
    outbound_documents.forget_documents()
    try:
        yield Internet(monkeypatch, host)
    finally:
        host.end()
        outbound_documents._tls.cache_clear()
        outbound_documents.forget_documents()
