"""Reading what a stranger points to: only the public internet, only what was checked, only so long and so much."""

import gzip
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from oauth_relay import outbound_documents
from oauth_relay.outbound_documents import (
    SHORTEST_LIFE,
    Documents,
    DocumentUnavailable,
    InvalidDocument,
    check_address,
    domain_of,
    fetch,
    is_public,
    lifetime_of,
)
from tests.document_host import PUBLIC, Internet, Send, answer, internet

URL = "https://app.example.com/client.json"
BOUND = 5.0


@pytest.fixture(autouse=True)
def in_production(settings: Any) -> None:
    settings.CLIENT_METADATA_LOOPBACK = False


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Internet]:
    with internet(monkeypatch, tmp_path) as net:
        net.host.publish("/client.json", {"hello": "world"}, ETag='"one"')
        yield net


@pytest.fixture
def short_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound_documents, "TIMEOUT", 0.4)


def refused_within_the_bound(kind: type[Exception] = DocumentUnavailable) -> str:
    started = time.monotonic()
    with pytest.raises(kind) as refused:
        fetch(URL)
    assert time.monotonic() - started < BOUND
    return str(refused.value)


def test_it_reads_a_document_over_the_certificate_of_its_name(net: Internet) -> None:
    read = fetch(URL)
    assert (read.content, read.etag) == ({"hello": "world"}, '"one"')
    (path, headers), *others = net.host.asked
    assert (path, headers["host"], headers["accept-encoding"], others) == (
        "/client.json",
        "app.example.com",
        "identity",
        [],
    )
    assert net.connected == [PUBLIC]


# -- where it goes -----------------------------------------------------------------------------------------------------

INSIDE = [
    "127.0.0.1", "::1", "169.254.169.254", "10.0.0.8", "172.16.3.4", "192.168.1.1", "100.64.0.1", "0.0.0.0",
    "255.255.255.255", "224.0.0.1", "240.0.0.1", "198.18.0.1", "192.0.2.7", "192.88.99.1", "::", "::ffff:127.0.0.1",
    "::ffff:8.8.8.8", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "2002:7f00:1::", "2002:808:808::1",
    "2001:0:7f00:1::", "::127.0.0.1", "::808:808", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1",
    "ff02::1", "ff0e::1", "2001:db8::1", "3fff::1", "5f00::1", "100::1", "not an address",
]  # fmt: skip


@pytest.mark.threat("T24")
@pytest.mark.parametrize("address", INSIDE)
def test_an_address_that_is_not_public_by_itself_is_refused_without_a_connection(net: Internet, address: str) -> None:
    net.names["app.example.com"] = [address]
    with pytest.raises(DocumentUnavailable):
        fetch(URL)
    assert net.connected == []


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2001:4860:4860::8888", "2606:2800:220:1::1"])
def test_an_address_of_the_public_internet_is_none_of_them(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("inside", ["10.0.0.8", "::1", "169.254.169.254"])
@pytest.mark.parametrize("first", [True, False])
def test_one_address_inside_among_public_ones_refuses_them_all(net: Internet, inside: str, first: bool) -> None:
    net.names["app.example.com"] = [inside, PUBLIC] if first else [PUBLIC, inside]
    assert "not public" in refused_within_the_bound()
    assert net.connected == []


@pytest.mark.threat("T24")
def test_a_name_that_changes_its_address_after_the_check_is_not_asked_again(net: Internet) -> None:
    """DNS rebinding: the second answer would lead inside."""
    answers = iter([[PUBLIC], ["127.0.0.1"], ["127.0.0.1"]])
    net.names["app.example.com"] = lambda: next(answers)
    assert fetch(URL).content == {"hello": "world"}
    assert (net.looked_up, net.connected) == (["app.example.com"], [PUBLIC])


@pytest.mark.parametrize(
    "url",
    [
        "http://app.example.com/x", "ftp://app.example.com/x", "file:///etc/passwd", "//app.example.com/x", "",
        "https:///x", "https://127.0.0.1/x", "https://[::1]/x", "https://2130706433/x", "https://0x7f000001/x",
        "https://0x7f.1/x", "https://017700000001/x", "https://0177.0.0.1/x", "https://127.1/x", "https://localhost/x",
        "http://localhost:80/x", "http://127.0.0.1/x", "https://app.example.com./x", "https://APP.example.com/x",
        "https://app.example.com:444/x", "https://app.example.com:22/x", "https://app.example.com:0/x",
        "https://app.example.com:/x", "https://app.example.com:0443/x", "https://app.example.com:99999/x",
        "https://u@app.example.com/x", "https://u:p@app.example.com/x", "https://@app.example.com/x",
        "https://app.example.com\\@inside.example/x", "https://app.example.com/x#y", "https://app.example.com/a b",
        "https://app.example.com/\r\nX: y", "https://b\u00fccher.example/x", "https://app_.example.com/x",
        "https://-app.example.com/x", f"https://{'a' * 64}.example.com/x", "https://a..example.com/x", "https://[::1/x",
        "https://8.8.8.8/x", "https://1.2.3.4.5/x",
    ],
)  # fmt: skip
def test_an_address_with_more_than_one_reading_is_not_fetched(net: Internet, url: str) -> None:
    with pytest.raises(InvalidDocument):
        fetch(url)
    assert (net.looked_up, net.connected) == ([], [])


def test_loopback_is_for_a_developers_own_client_only(settings: Any) -> None:
    settings.CLIENT_METADATA_LOOPBACK = True
    assert check_address("http://localhost:33418/client.json").port == 33418
    for elsewhere in ("http://app.example.com/x", "http://10.0.0.8/x", "http://127.0.0.1.example.com/x"):
        with pytest.raises(InvalidDocument):
            check_address(elsewhere)


def test_a_certificate_for_another_name_is_refused(net: Internet) -> None:
    net.names["mallory.example.com"] = [PUBLIC]
    with pytest.raises(DocumentUnavailable, match=r"(?i)certificate"):
        fetch("https://mallory.example.com/client.json")
    assert net.host.asked == []


def test_a_certificate_of_an_unknown_authority_is_refused(net: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    outbound_documents._tls.cache_clear()
    assert "certificate" in refused_within_the_bound().lower()


@pytest.mark.threat("T24")
@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Again", "308 Moved"])
def test_a_redirect_is_not_followed(net: Internet, status: str) -> None:
    for location in ("https://two.example.com/client.json", "http://169.254.169.254/latest/meta-data/"):
        net.host.pages["/client.json"] = answer(b"{}", status=status, Location=location)
        assert "status 30" in refused_within_the_bound()
    assert net.looked_up == ["app.example.com"] * 2


def test_no_proxy_of_the_environment_is_asked(net: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert fetch(URL).content == {"hello": "world"}


def test_an_address_that_does_not_answer_leaves_time_for_the_next(
    net: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    dial = outbound_documents.connect

    def first_fails(address: tuple[str, int], timeout: float) -> Any:
        if address[0] == "8.8.4.4":
            raise TimeoutError
        return dial(address, timeout)

    monkeypatch.setattr(outbound_documents, "connect", first_fails)
    net.names["app.example.com"] = ["8.8.4.4", PUBLIC]
    assert fetch(URL).content == {"hello": "world"}


# -- how long, and how much --------------------------------------------------------------------------------------------


def drip(net: Internet, send: Send, first: bytes = b"", piece: bytes = b" ") -> None:
    """A byte now and then, for ever: each comes before any time-out of a single read."""
    send(first)
    while not net.host.ended.wait(0.1):
        send(piece)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.threat("T24")
@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (b"", b""),
        (b"HTTP/1.1 200 ", b"x"),
        (HEAD, b"X-Header: y\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (HEAD + b"\r\n{", b" "),
        (HEAD + b"Content-Length: 9000\r\n\r\n{", b" "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    ],
    ids=["silence", "status", "headers", "continue", "body", "length", "chunks", "chunk-size"],
)
def test_a_slow_drip_ends_at_the_one_deadline(net: Internet, short_deadline: None, first: bytes, piece: bytes) -> None:
    net.host.pages["/client.json"] = lambda send: drip(net, send, first, piece)
    refused_within_the_bound()


def test_a_host_that_never_shows_its_certificate_ends_there_too(
    net: Internet, short_deadline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = threading.Event()
    monkeypatch.setattr(net.host, "_answer", lambda connection: silent.wait(10))
    refused_within_the_bound()
    silent.set()


def test_so_does_a_name_server_that_is_silent(net: Internet, short_deadline: None) -> None:
    silent = threading.Event()
    net.names["app.example.com"] = lambda: [PUBLIC] if silent.wait(10) else []
    assert "name server" in refused_within_the_bound()
    silent.set()
    assert net.connected == []


def test_a_name_that_does_not_exist_is_a_sentence_and_no_stack_trace(net: Internet) -> None:
    def nobody() -> list[str]:
        raise OSError("Name or service not known")

    net.names["app.example.com"] = nobody
    assert "not known" in refused_within_the_bound()


def endless(send: Send) -> None:
    send(HEAD + b"\r\n{")
    while True:
        send(b" " * 4096)


@pytest.mark.parametrize(
    "page",
    [answer(b"{" + b" " * 20_000 + b"}"), answer(b"{" + b" " * 20_000 + b"}", content_length=""), endless],
    ids=["counted", "uncounted", "endless"],
)
def test_a_large_document_is_not_read_to_its_end(net: Internet, page: Any) -> None:
    net.host.pages["/client.json"] = page
    assert "larger" in refused_within_the_bound(InvalidDocument)


def test_a_small_answer_that_unpacks_to_a_large_one_is_not_unpacked(net: Internet) -> None:
    bomb = gzip.compress(b'{"a":"' + b" " * 5_000_000 + b'"}')
    assert len(bomb) < outbound_documents.LARGEST
    net.host.pages["/client.json"] = answer(bomb, content_encoding="gzip")
    assert "compressed" in refused_within_the_bound(InvalidDocument)


# -- what it is --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    ["text/html", "text/json", "", "application/jsonp", "text/plain; application/json", "application/+json", "image/+json"],
)  # fmt: skip
def test_another_content_type_is_refused(net: Internet, kind: str) -> None:
    net.host.pages["/client.json"] = answer(b"{}", content_type=kind)
    refused_within_the_bound(InvalidDocument)


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.client+json"])
def test_json_by_another_name_is_json(net: Internet, kind: str) -> None:
    net.host.pages["/client.json"] = answer(b'{"a": 1}', content_type=kind)
    assert fetch(URL).content == {"a": 1}


@pytest.mark.threat("T32")
@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"null", b'"x"', b'{"a": 1', b'{"a": 1}{', b"{'a': 1}", b'{"a": 1, "a": 2}', b'{"b": {"a": 1, "a": 1}}',
        b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b'{"a": NaN}', b'{"a": Infinity}', b'{"a": "\xff"}', b"[" * 9000,
        b'{"a":' * 3000, b'{"a": ' + b"1" * 9000 + b"}",
    ],
)  # fmt: skip
def test_what_two_readers_could_read_differently_is_refused(net: Internet, body: bytes) -> None:
    net.host.pages["/client.json"] = answer(body)
    refused_within_the_bound(InvalidDocument)


@pytest.mark.parametrize(
    "page",
    [
        answer(b'{"a": 1}', content_length="80"),
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n8\r\n{",
        answer(b"{}", status="404 Not Found"),
        answer(b"{}", status="500 Oops"),
        answer(b"{}", status="206 Partial Content"),
        answer(b"{}", status="203 Other"),
        answer(b"", status="304 Not Modified"),
        b"not HTTP at all\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(200)) + b"\r\n{}",
    ],
)  # fmt: skip
def test_whatever_is_no_whole_answer_is_unavailable(net: Internet, page: bytes) -> None:
    net.host.pages["/client.json"] = page
    refused_within_the_bound()


# -- how often ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cache_control", "seconds"),
    [
        ("", 3600), ("max-age=600", 600), ("public, max-age=600", 600), ('max-age="600"', 600), ("MAX-AGE=600", 600),
        ("max-age=1", SHORTEST_LIFE), ("max-age=99999999", 86400), ("no-store", SHORTEST_LIFE),
        ("no-cache, max-age=600", SHORTEST_LIFE), ("max-age=600, no-store", SHORTEST_LIFE), ("s-maxage=900", 3600),
        ("max-age=-1", 3600), ("max-age=x", 3600), ("max-age=" + "9" * 400, 86400), ("public,max-age=700", 700),
    ],
)  # fmt: skip
def test_an_answer_is_good_as_long_as_its_headers_say_within_bounds(cache_control: str, seconds: float) -> None:
    assert lifetime_of(cache_control) == seconds


def test_on_loopback_a_document_is_as_young_as_it_says() -> None:
    """Its author is at work on it."""
    assert lifetime_of("no-store", floor=0) == lifetime_of("max-age=0", floor=0) == 0


def unchecked(url: str, content: dict[str, Any]) -> dict[str, Any]:
    return content


def test_a_document_is_read_once_and_asked_after_with_its_tag(net: Internet) -> None:
    documents = Documents(unchecked)
    first = documents.read(URL, known=False)
    assert documents.read(URL, known=False) is first
    net.host.pages["/client.json"] = answer(b"", status="304 Not Modified", Cache_Control="max-age=900")
    again = documents.read(URL, known=False, since=time.time())
    assert again.content == {"hello": "world"}
    assert again.good_until - again.read_at == 900
    assert [headers.get("if-none-match") for _, headers in net.host.asked] == [None, '"one"']


def test_a_storm_costs_one_fetch(net: Internet) -> None:
    documents, page, go = Documents(unchecked), net.host.pages["/client.json"], threading.Event()
    net.host.pages["/client.json"] = lambda send: (go.wait(5), send(page))
    with ThreadPoolExecutor(12) as threads:
        waiting = [threads.submit(documents.read, URL, known=False) for _ in range(12)]
        until_true(lambda: outbound_documents._gate.waiting == 11)
        go.set()
        assert all(future.result(BOUND).content == {"hello": "world"} for future in waiting)
    assert len(net.host.asked) == 1


def test_a_storm_on_a_broken_document_costs_one_fetch_too(net: Internet) -> None:
    documents = Documents(unchecked)
    net.host.pages["/client.json"] = answer(b"[]")
    for _ in range(5):
        with pytest.raises(InvalidDocument, match="one JSON object"):
            documents.read(URL, known=True)
    assert len(net.host.asked) == 1


def test_a_failure_is_forgotten_after_its_time_and_never_takes_the_place_of_what_is_good(
    net: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, page = Documents(unchecked), net.host.pages["/client.json"]
    documents.read(URL, known=True)
    net.host.pages["/client.json"] = answer(b"", status="500 Oops")
    with pytest.raises(DocumentUnavailable):
        documents.read(URL, known=True, since=time.time())
    assert documents.read(URL, known=True).content == {"hello": "world"}
    net.host.pages["/client.json"] = page
    monkeypatch.setattr(outbound_documents.time, "monotonic", lambda now=time.monotonic: now() + 31)
    assert documents.read(URL, known=True, since=time.time()).content == {"hello": "world"}


def test_what_its_check_refuses_is_remembered_as_a_failure(net: Internet) -> None:
    def refuse(url: str, content: dict[str, Any]) -> dict[str, Any]:
        raise InvalidDocument("It says nothing.")

    documents = Documents(refuse)
    for _ in range(3):
        with pytest.raises(InvalidDocument, match="nothing"):
            documents.read(URL, known=False)
    assert documents.find(URL) is None
    assert len(net.host.asked) == 1


def until_true(question: Any) -> None:
    until = time.monotonic() + BOUND
    while not question():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.threat("T24")
def test_one_domain_is_read_one_at_a_time_and_keeps_nobody_else_waiting(net: Internet) -> None:
    documents, page, go = Documents(unchecked), net.host.pages["/client.json"], threading.Event()
    net.host.pages["/slow"] = lambda send: (go.wait(5), send(page))
    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(documents.read, "https://app.example.com/slow", known=False)
        until_true(lambda: net.host.asked)
        sister = threads.submit(documents.read, "https://two.example.com/client.json", known=False)
        until_true(lambda: outbound_documents._gate.waiting)
        assert documents.read("https://app.example.org/client.json", known=False).content == {"hello": "world"}
        assert not sister.done()
        assert [path for path, _ in net.host.asked] == ["/slow", "/client.json"]
        go.set()
        assert slow.result(BOUND).content == sister.result(BOUND).content == {"hello": "world"}


@pytest.mark.threat("T24")
def test_no_ceiling_is_for_who_is_known(net: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound_documents, "MOST_AT_ONCE", 0)
    monkeypatch.setattr(outbound_documents, "MOST_NEW_A_DAY", 0)
    monkeypatch.setattr(outbound_documents, "TIMEOUT", 0.4)
    documents = Documents(unchecked)
    with pytest.raises(DocumentUnavailable):
        documents.read(URL, known=False)
    monkeypatch.setattr(outbound_documents, "TIMEOUT", BOUND)
    assert documents.read(URL, known=True).content == {"hello": "world"}


@pytest.mark.threat("T24")
def test_new_addresses_of_one_domain_are_few_a_day(net: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound_documents, "MOST_NEW_A_DAY", 2)
    documents = Documents(unchecked)
    for name in ("app", "two", "app"):
        documents.read(f"https://{name}.example.com/client.json", known=False)
    with pytest.raises(DocumentUnavailable, match="new addresses"):
        documents.read("https://app.example.com/another", known=False)
    documents.read("https://app.example.org/client.json", known=False)
    monkeypatch.setattr(outbound_documents.time, "monotonic", lambda now=time.monotonic: now() + 86401)
    with pytest.raises(DocumentUnavailable, match="404"):
        documents.read("https://app.example.com/another", known=False)


@pytest.mark.threat("T24")
def test_a_strangers_inventions_use_up_nobody_elses_share(net: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound_documents, "MOST_NEW_A_DAY", 2)
    documents = Documents(unchecked)
    for number in range(3):
        with pytest.raises(DocumentUnavailable, match="404" if number < 2 else "new addresses"):
            documents.read(f"https://app.example.com/invented{number}", known=False, asker="203.0.113.5")
    assert documents.read(URL, known=False, asker="198.51.100.7").content == {"hello": "world"}


@pytest.mark.parametrize(
    ("url", "domain"),
    [
        ("https://claude.ai/x", "claude.ai"), ("https://a.b.c.example.com/x", "example.com"),
        ("https://a.b.example.co.uk/x", "example.co.uk"), ("https://x.vscode.dev/y", "vscode.dev"),
        ("https://bbc.co.uk/x", "bbc.co.uk"), ("http://localhost:1/x", "localhost"),
    ],
)  # fmt: skip
def test_the_hosts_of_one_owner_count_as_one(url: str, domain: str) -> None:
    assert domain_of(url) == domain


def test_what_is_remembered_has_an_end(monkeypatch: pytest.MonkeyPatch, net: Internet) -> None:
    monkeypatch.setattr(outbound_documents, "MOST_REMEMBERED", 1)
    documents = Documents(unchecked)
    documents.read(URL, known=True)
    documents.read("https://two.example.com/client.json", known=True)
    assert documents.find(URL) is None
