"""`manage.py doctor` on a set-up without an identity provider: what is right, what is wrong, and how it is told."""

import contextlib
import datetime
import os
import pty
import select
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from django.db import connection

from cair.doctor import examination, surroundings, visit
from cair.doctor.findings import Finding, Status, quoted
from cair.doctor.visit import Visit
from tests import servers
from tests.cair.doctoring import Reply, Request, database_file, examine, manage, prepared, run, serving
from tests.check_deploy import PRODUCTION
from tests.servers import ROOT, Server, free_port, serve, server_environment

OTHER_MASTER_KEY = "enp6enp6enp6enp6enp6enp6enp6enp6enp6enp6eno="


@pytest.fixture(scope="module")
def checkout() -> Iterator[dict[str, str]]:
    """A development checkout with a database, and no server."""
    with prepared() as environment:
        yield environment


# -- a set-up that is right --------------------------------------------------------------------------------------------


@pytest.mark.pain("P22")
def test_it_finds_no_fault_with_a_development_server(server: Server) -> None:
    report = examine(server.environment)
    assert report.failures() == []
    assert [check["name"] for check in report.checks if check["status"] == "warning"] == ["redis", "https", "mail"]
    assert "accepts a token of CAIR's for urn:todos-api" in report["todos API with a token"]["found"]
    assert "all 11 documents" in report["metadata"]["found"]


def test_it_changes_nothing(sqlite_server: Server) -> None:
    def rows() -> list[str]:
        with contextlib.closing(sqlite3.connect(database_file(sqlite_server.environment))) as connection:
            return list(connection.iterdump())

    examine(sqlite_server.environment)  # the server writes what it writes at its first requests
    before = rows()
    assert len(before) > 50
    examine(sqlite_server.environment)
    assert rows() == before


def test_in_development_a_server_that_does_not_run_is_a_warning(checkout: dict[str, str]) -> None:
    report = examine(checkout)
    assert report.failures() == []
    assert report.status("PUBLIC_URL") == "warning" and "nothing listens there" in report["PUBLIC_URL"]["found"]
    assert "make run" in report["PUBLIC_URL"]["repair"]


def test_in_production_it_is_a_failure(tmp_path: Path) -> None:
    url = f"https://localhost:{free_port()}"
    report = examine({**bare(tmp_path), **PRODUCTION, "PUBLIC_URL": url})
    assert "PUBLIC_URL" in report.failures()


def bare(tmp_path: Path) -> dict[str, str]:
    return server_environment(free_port(), f"sqlite:///{tmp_path}/x.sqlite3")


# -- the environment ---------------------------------------------------------------------------------------------------


def test_it_names_every_wrong_variable(tmp_path: Path) -> None:
    wrong = {
        "OWN_ACCOUNTS": "perhaps",
        "AUTH0_CLIENT_ID": "an-id",
        "CAIR_MASTER_KEYS": "c2hvcnQ=",
        "DATABASE_POOL": "x",
    }
    environment = {**bare(tmp_path), **wrong, "DATABASE_URL": "oracle://ada:some-password@x/y"}
    report = examine(environment, unseen=("some-password", "c2hvcnQ="))
    told = " ".join(check["found"] for check in report.checks if check["name"] == "environment")
    for name in ("OWN_ACCOUNTS", "AUTH0_DOMAIN", "CAIR_MASTER_KEYS", "DATABASE_URL"):
        assert name in told
    assert "environment" in report.failures()


# -- the database ------------------------------------------------------------------------------------------------------


def test_it_says_that_there_is_no_database_and_makes_none(tmp_path: Path) -> None:
    report = examine(bare(tmp_path))
    assert "does not exist yet" in report["database"]["found"]
    assert report.failures() == ["database"]
    assert list(tmp_path.iterdir()) == []


def test_it_finds_a_database_that_is_not_migrated(tmp_path: Path) -> None:
    (tmp_path / "x.sqlite3").touch(mode=0o600)
    report = examine(bare(tmp_path))
    assert report.failures() == ["migrations"]
    assert "prepare" in report["migrations"]["repair"]
    assert "not migrated" in report["signing keys"]["found"]


def test_it_finds_a_database_that_a_newer_cair_has_migrated(tmp_path: Path, checkout: dict[str, str]) -> None:
    environment = copied(checkout, tmp_path)
    with contextlib.closing(sqlite3.connect(database_file(environment))) as connection, connection:
        connection.execute(
            "INSERT INTO django_migrations (app, name, applied) VALUES ('oauth_relay', '9999_later', CURRENT_TIMESTAMP)"
        )
    assert "oauth_relay.9999_later" in examine(environment)["migrations"]["found"]


def copied(checkout: dict[str, str], folder: Path) -> dict[str, str]:
    """The same set-up on a database that a test may spoil."""
    target = folder / "copy.sqlite3"
    with contextlib.closing(sqlite3.connect(database_file(checkout))) as source:
        with contextlib.closing(sqlite3.connect(target)) as copy:
            source.backup(copy)
    target.chmod(0o600)
    return {**checkout, "DATABASE_URL": f"sqlite:///{target}"}


@pytest.mark.threat("T26")
def test_it_minds_a_database_that_others_can_read(tmp_path: Path, checkout: dict[str, str]) -> None:
    environment = copied(checkout, tmp_path)
    os.chmod(database_file(environment), 0o644)
    assert "others on this machine can read it" in examine(environment)["database"]["found"]


def test_it_finds_postgresql_away_and_keeps_the_password(tmp_path: Path) -> None:
    url = f"postgres://ada:some-password@127.0.0.1:{free_port()}/cair"
    started = time.monotonic()
    report = examine({**bare(tmp_path), "DATABASE_URL": url}, unseen=("some-password",))
    assert time.monotonic() - started < 20
    assert report.failures() == ["database"]
    assert "refused" in report["database"]["found"]


def test_it_keeps_the_password_even_if_the_database_library_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection.settings_dict, "PASSWORD", "some-password")
    assert visit._without_password("no entry for ada:some-password@db") == "no entry for ada:…@db"


@pytest.mark.postgres
def test_it_repeats_what_postgresql_says_against_a_name(tmp_path: Path) -> None:
    url = f"{servers.POSTGRES}/no_such_database"
    assert (
        'database "no_such_database" does not exist'
        in examine({**bare(tmp_path), "DATABASE_URL": url})["database"]["found"]
    )


# -- Redis and mail ----------------------------------------------------------------------------------------------------


def test_it_finds_redis_away_and_keeps_the_password(checkout: dict[str, str]) -> None:
    url = f"redis://:some-password@127.0.0.1:{free_port()}/0"
    report = examine({**checkout, "REDIS_URL": url}, unseen=("some-password",))
    assert report.failures() == ["redis"]
    assert "127.0.0.1" in report["redis"]["found"]


@pytest.mark.redis
def test_it_finds_redis(checkout: dict[str, str]) -> None:
    assert examine({**checkout, "REDIS_URL": servers.REDIS}).status("redis") == "ok"


def test_it_survives_a_redis_url_that_is_none(checkout: dict[str, str]) -> None:
    report = examine({**checkout, "REDIS_URL": "localhost:6379"})
    assert "REDIS_URL" in report["environment"]["found"]


def mail_finding(settings: Any, port: int) -> Finding:
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", port
    return next(iter(surroundings.mail(Visit("/"))))


def test_it_finds_a_mail_server_away(settings: Any) -> None:
    assert mail_finding(settings, free_port()).status == Status.FAILURE


def test_it_finds_a_mail_server(settings: Any) -> None:
    with smtp_server() as port:
        assert mail_finding(settings, port).status == Status.GOOD


@contextlib.contextmanager
def smtp_server() -> Iterator[int]:
    """One that greets, and says goodbye (RFC 5321 §3.1)."""
    listener = socket.create_server(("127.0.0.1", 0))

    def greet() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rw", newline="\r\n") as lines:
            lines.write("220 mail.example.com\n")
            lines.flush()
            for line in lines:
                lines.write("221 bye\n" if line.startswith("QUIT") else "250 mail.example.com\n")
                lines.flush()

    thread = threading.Thread(target=greet, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        thread.join(5)
        listener.close()


# -- PUBLIC_URL --------------------------------------------------------------------------------------------------------


def test_it_finds_a_public_url_that_leads_elsewhere(sqlite_server: Server) -> None:
    report = examine({**sqlite_server.environment, "PUBLIC_URL": f"http://localhost:{free_port()}"})
    assert "PUBLIC_URL" in report.failures()
    assert f"CAIR runs on port {sqlite_server.environment['PORT']}" in report["PUBLIC_URL"]["found"]


def test_it_finds_a_server_that_was_started_with_another_public_url(sqlite_server: Server) -> None:
    report = examine({**sqlite_server.environment, "PUBLIC_URL": sqlite_server.address})
    assert report.status("PUBLIC_URL") == "ok"
    assert "metadata" in report.failures()


def test_it_finds_documents_that_name_another_address(sqlite_server: Server) -> None:
    def hand_on(request: Request) -> Reply:
        headers = {**request.headers, "Host": urlsplit(sqlite_server.url).netloc}
        answer = requests.request(
            request.method, f"{sqlite_server.address}{request.path}", headers=headers, data=request.body, timeout=5
        )
        kept = {name: answer.headers[name] for name in ("Content-Type", "WWW-Authenticate") if name in answer.headers}
        return Reply(answer.status_code, answer.content, kept)

    with serving(hand_on) as origin:
        report = examine({**sqlite_server.environment, "PUBLIC_URL": origin})
    assert "metadata" in report.failures()
    assert f"says resource {sqlite_server.mcp} (and " in report["metadata"]["found"]


def test_it_finds_that_the_server_has_another_database(sqlite_server: Server, checkout: dict[str, str]) -> None:
    report = examine({**sqlite_server.environment, "DATABASE_URL": checkout["DATABASE_URL"]})
    assert "uses another database" in report["signing keys"]["found"]
    assert "signing keys" in report.failures()


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(200, "<h1>Welcome to nginx!</h1>"), "something that is not CAIR"),
        (Reply(502, "<h1>Bad gateway</h1>"), "HTTP 502"),
        (Reply(301, "", {"Location": "https://cair.example.com/health"}), "redirects to https://cair.example.com"),
        (Reply(421, {"error": "misdirected_request", "error_description": "Use another \x1b[31maddress."}), "refuses"),
    ],
)
def test_it_finds_something_else_at_public_url(checkout: dict[str, str], reply: Reply, said: str) -> None:
    with serving(lambda _: reply) as origin:
        report = examine({**checkout, "PUBLIC_URL": origin})
    assert said in report["PUBLIC_URL"]["found"]
    assert report.failures() == ["PUBLIC_URL"]


def test_it_does_not_wait_for_an_answer_that_never_ends(checkout: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        report = examine({**checkout, "PUBLIC_URL": f"http://localhost:{silent.getsockname()[1]}"})
    assert "no answer within 5 s" in report["PUBLIC_URL"]["found"]
    assert time.monotonic() - started < 20


# -- https, and a proxy in between -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def production() -> Iterator[tuple[Server, int]]:
    """A production server for https://localhost, and the port on which a proxy has to stand before it."""
    with servers.database("sqlite") as url:
        port = free_port()
        with serve(url, {**PRODUCTION, "PUBLIC_URL": f"https://localhost:{port}"}) as running:
            yield running, port


def certificate(folder: Path, days: int) -> tuple[Path, ssl.SSLContext]:
    """A certificate for localhost that vouches for itself, good for `days`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "certificate.pem"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, folder / "key.pem")
    return pem, context


@contextlib.contextmanager
def proxy(
    production: tuple[Server, int], folder: Path, change: Callable[[dict[str, str]], Any], days: int = 90
) -> Iterator[dict[str, str]]:
    """A TLS proxy before the server; `change` does to the headers what proxies do. The doctor's environment."""
    server, port = production
    pem, context = certificate(folder, days)

    def hand_on(request: Request) -> Reply:
        headers = dict(request.headers)
        change(headers)
        answer = requests.request(
            request.method, f"{server.address}{request.path}", headers=headers, data=request.body, timeout=5,
            allow_redirects=False,
        )  # fmt: skip
        kept = {name: answer.headers[name] for name in ("Content-Type", "WWW-Authenticate") if name in answer.headers}
        return Reply(answer.status_code, answer.content, kept)

    with serving(hand_on, lambda plain: context.wrap_socket(plain, server_side=True), port):
        yield {**server.environment, "REQUESTS_CA_BUNDLE": str(pem)}


def test_it_finds_no_fault_with_a_proxy_that_hands_everything_on(
    production: tuple[Server, int], tmp_path: Path
) -> None:
    with proxy(production, tmp_path, lambda headers: None) as environment:
        report = examine(environment)
    assert report.failures() == []
    assert report["proxy"]["found"] == "Host and Authorization arrive as they were sent"
    assert report["https"]["found"].endswith("good for 89 days")


def test_it_finds_a_proxy_that_changes_the_host(production: tuple[Server, int], tmp_path: Path) -> None:
    with proxy(production, tmp_path, lambda headers: headers.update(Host="127.0.0.1:8788")) as environment:
        report = examine(environment)
    assert "proxy" in report.failures()
    assert "proxy_set_header Host" in report["proxy"]["repair"]


def test_it_finds_a_proxy_that_drops_authorization(production: tuple[Server, int], tmp_path: Path) -> None:
    with proxy(production, tmp_path, lambda headers: headers.pop("Authorization", None)) as environment:
        report = examine(environment)
    assert report.failures() == ["proxy"]
    assert "Authorization header is lost" in report["proxy"]["found"]


def test_it_warns_of_a_certificate_that_ends_soon(production: tuple[Server, int], tmp_path: Path) -> None:
    with proxy(production, tmp_path, lambda headers: None, days=5) as environment:
        report = examine(environment)
    assert report["https"]["found"] == "the certificate ends in 4 days"


def test_it_finds_a_certificate_that_nobody_vouches_for(production: tuple[Server, int], tmp_path: Path) -> None:
    with proxy(production, tmp_path, lambda headers: None) as environment:
        report = examine({name: value for name, value in environment.items() if name != "REQUESTS_CA_BUNDLE"})
    assert "PUBLIC_URL" in report.failures()
    assert "certificate is not accepted (self-signed certificate)" in report["PUBLIC_URL"]["found"]


# -- keys --------------------------------------------------------------------------------------------------------------


def test_it_finds_that_the_master_key_is_another(tmp_path: Path, checkout: dict[str, str]) -> None:
    report = examine({**checkout, "CAIR_MASTER_KEYS": OTHER_MASTER_KEY})
    assert {"master keys", "data keys"} <= set(report.failures())
    assert "open under no key of CAIR_MASTER_KEYS" in report["master keys"]["found"]


@pytest.mark.threat("T20")
def test_it_finds_keys_that_the_first_master_key_does_not_wrap(tmp_path: Path) -> None:
    environment = {**bare(tmp_path), "CAIR_MASTER_KEYS": PRODUCTION["CAIR_MASTER_KEYS"]}
    manage(environment, "prepare")
    report = examine({**environment, "CAIR_MASTER_KEYS": f"{OTHER_MASTER_KEY},{PRODUCTION['CAIR_MASTER_KEYS']}"})
    assert report.failures() == []
    assert "rotate_master_key" in report["master keys"]["repair"]


def test_it_minds_old_keys(tmp_path: Path, checkout: dict[str, str]) -> None:
    environment = copied(checkout, tmp_path)
    with contextlib.closing(sqlite3.connect(database_file(environment))) as connection, connection:
        connection.execute("UPDATE oauth_relay_signingkey SET state_since = '2020-01-01 00:00:00'")
        connection.execute("UPDATE oauth_relay_datakey SET created = '2020-01-01 00:00:00'")
    report = examine(environment)
    assert "rotate_signing_key" in report["signing keys"]["repair"]
    assert "rotate_vault_key" in report["data keys"]["repair"]


@pytest.mark.parametrize(("days", "status"), [(0.5, "ok"), (2, "warning")])
def test_it_minds_a_rotation_that_was_left_unfinished(
    tmp_path: Path, checkout: dict[str, str], days: float, status: str
) -> None:
    environment = copied(checkout, tmp_path)
    rows = f"""
from datetime import timedelta
from django.utils import timezone
from oauth_relay import keys
from oauth_relay.models import DataKey, SigningKey
since = timezone.now() - timedelta(days={days})
SigningKey.objects.filter(pk=keys.make(SigningKey.State.RETIRED).pk).update(state_since=since)
DataKey.objects.create(retired_at=since)
"""
    manage(environment, "shell", "--no-imports", "--command", rows)
    report = examine(environment)
    assert (report.status("signing keys"), report.status("data keys")) == (status, status)
    if status == "warning":
        assert "rotate_signing_key" in report["signing keys"]["repair"]
        assert "rotate_vault_key" in report["data keys"]["repair"]


def test_it_says_that_there_are_no_keys_yet(tmp_path: Path) -> None:
    (tmp_path / "x.sqlite3").touch(mode=0o600)
    environment = bare(tmp_path)
    manage(environment, "migrate", "--verbosity", "0")
    report = examine(environment)
    assert "signing keys" in report.failures()
    assert report.status("data keys") == "warning"
    assert "prepare" in report["todos API with a token"]["repair"]


# -- how it is told ----------------------------------------------------------------------------------------------------


def test_it_tells_each_finding_in_a_line_with_its_repair(checkout: dict[str, str]) -> None:
    done = run(checkout)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and "\033" not in done.stdout
    assert any(line.startswith(" ✓ database") for line in lines)
    at = next(number for number, line in enumerate(lines) if line.startswith(" ! redis"))
    assert lines[at + 1].strip().startswith("→ Set REDIS_URL")
    assert lines[-1].startswith("No failure, ")


def test_it_ends_with_one_on_a_failure(tmp_path: Path) -> None:
    done = run(bare(tmp_path))
    assert done.returncode == 1
    assert any(line.startswith(" ✗ database") for line in done.stdout.splitlines())
    assert "1 failure" in done.stdout


@pytest.mark.parametrize(("extra", "is_coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_it_is_coloured_where_a_person_looks_and_wants_it(
    checkout: dict[str, str], extra: dict[str, str], is_coloured: bool
) -> None:
    assert ("\033[33m" in on_a_terminal({**checkout, "TERM": "xterm", **extra})) is is_coloured


def on_a_terminal(environment: dict[str, str]) -> str:
    """What the command writes when its output is a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "manage.py", "doctor"], cwd=ROOT, env=environment, stdout=theirs)
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # how the end of a terminal reads
        while select.select([ours], [], [], 30)[0] and (chunk := os.read(ours, 4096)):
            written += chunk
    process.wait(5)
    os.close(ours)
    assert b"CAIR at" in written
    return written.decode()


def test_an_output_that_has_no_such_signs_gets_plain_ones(checkout: dict[str, str]) -> None:
    done = run({**checkout, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert "\n ok database" in done.stdout and "-> Set REDIS_URL" in done.stdout


def test_a_check_that_fails_itself_is_a_finding_and_keeps_no_other_from_being_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(visit: Visit) -> Iterator[Finding]:
        raise ValueError("some-secret")
        yield

    def sound(visit: Visit) -> Iterator[Finding]:
        yield Finding("sound", Status.GOOD, "is well")

    monkeypatch.setattr(examination, "checks", lambda: iter([("broken", broken), ("sound", sound)]))
    first, second = examination.examine(Visit("/"))
    assert (first.name, first.status, second.name) == ("broken", Status.FAILURE, "sound")
    assert "ValueError in test_doctor.py" in first.found
    assert "some-secret" not in first.found + first.repair


def test_what_others_say_is_cut_and_cannot_command_a_terminal() -> None:
    assert quoted("a\x1b[31m\r\nb") == "a [31m b"
    assert len(quoted("x" * 1000)) == 200


def test_it_refuses_a_path_that_is_none(checkout: dict[str, str]) -> None:
    done = run(checkout, "--api-path", "elsewhere")
    assert done.returncode == 1 and "--api-path must begin with a slash" in done.stderr


def test_every_line_has_its_row_in_the_page_for_operators(settings: Any) -> None:
    from tests.identity_provider import configure

    configure(settings, "http://localhost:1")
    page = (ROOT / "docs/operations.md").read_text()
    names = [
        name.replace("auth0 ", "*provider* ").replace("todos API ", "*name* API ") for name, _ in examination.checks()
    ]
    assert [name for name in [*names, "*provider* audience"] if f"| {name} |" not in page] == []
