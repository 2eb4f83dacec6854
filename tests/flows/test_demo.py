"""`make demo`: a newcomer watches the walk, and is told what to do when it cannot go on."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cair.demo.oauth_client import Listener
from tests import servers
from tests.walk import Person, parameters_of, plain

BOUND = 90.0
STEPS = [
    "server", "asked", "discovered", "discovered", "registered", "signed in", "consented", "answered", "token", "tools/list",
    "list_todos", "create_todo", "list_todos", "withdrew", "over",
]  # fmt: skip


@pytest.fixture(scope="module")
def server(sqlite_server: servers.Server) -> servers.Server:
    """Which database it is is not the point here: the walks are made on both elsewhere."""
    return sqlite_server


def environment(**more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "CAIR_ENV": "development", "CAIR_ENV_FILE": os.devnull, "PYTHONUNBUFFERED": "1", **more}


def demo(*arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "manage.py", "demo", *arguments],
        cwd=servers.ROOT, env=environment(**more), capture_output=True, text=True, timeout=BOUND, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def steps_of(printed: str) -> list[str]:
    return [found[1].strip() for found in re.finditer(r"^ ?\d+  (.{13})", printed, re.MULTILINE)]


def test_it_walks_the_whole_job_against_a_server_of_its_own() -> None:
    done = demo(HEADLESS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert steps_of(done.stdout) == STEPS
    assert "401 invalid_token" in done.stdout
    assert "\033[" not in done.stdout, "colours belong on a terminal"
    assert done.stderr == ""
    long_words = re.findall(r"[A-Za-z0-9_-]{40,}", done.stdout)
    assert long_words == [], "a token, a code or a verifier was printed whole"
    url = re.search(r"http://localhost:\d+", done.stdout)
    assert url and not servers.is_listening(url[0]), "its server is still there"


def test_it_walks_through_a_server_that_runs_already(server: servers.Server) -> None:
    done = demo("--headless", "--url", server.url + "/")
    assert done.returncode == 0, done.stdout + done.stderr
    assert steps_of(done.stdout) == STEPS
    again = demo(HEADLESS="yes", URL=server.url)
    assert again.returncode == 0, again.stdout + again.stderr


def test_it_says_what_to_do_where_nobody_answers() -> None:
    done = demo("--headless", "--url", f"http://localhost:{servers.free_port()}")
    assert done.returncode == 1
    assert "No CAIR server answers" in done.stdout and "make run" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_it_says_what_to_do_where_there_is_no_demo_user() -> None:
    with servers.database("sqlite") as url, servers.serve(url, {"DEMO_USER": "no"}) as server:
        done = demo("--headless", "--url", server.url)
    assert done.returncode == 1
    assert "not the expected one" in done.stdout and "without HEADLESS" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


class BrowserStub:
    """A `BROWSER` that writes the address it was given into a pipe, where the scripted person reads it."""

    def __init__(self, folder: Path) -> None:
        self.pipe = folder / "addresses"
        os.mkfifo(self.pipe)
        program = folder / "browser"
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$1" > {self.pipe}\n')
        program.chmod(0o700)
        self.command = f"{program} %s"

    def address(self) -> str:
        """The next address; opened for writing as well, so that this waits for a line and not for a writer."""
        got: list[str] = []
        reader = threading.Thread(target=lambda: got.append(self.pipe.open().readline().strip()), daemon=True)
        reader.start()
        reader.join(30)
        assert got, "the demo opened no browser"
        return got[0]


def started(*arguments: str, **more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "manage.py", "demo", *arguments],
        cwd=servers.ROOT, env=environment(**more), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
        # Whoever runs the tests in the background ignores Ctrl-C, and so would this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def end(process: "subprocess.Popen[str]") -> str:
    printed, _ = process.communicate(timeout=30)
    return printed


def test_with_a_browser_it_waits_for_the_person_at_both_pages(server: servers.Server, tmp_path: Path) -> None:
    browser, person = BrowserStub(tmp_path), Person(server.url)
    process = started("--url", server.url, BROWSER=browser.command)
    page = person.consent_page(browser.address())
    name = next(word for word in re.findall(r"CAIR demo \d+", page.text))
    assert plain().get(person.browser.press(page, "allow").left, timeout=5).status_code == 200
    assert browser.address() == f"{server.url}/connections"
    person.withdraw(name)
    printed = end(process)
    assert process.returncode == 0, printed
    assert "401 invalid_token" in printed and "waiting for your answer" in printed


def test_with_a_browser_it_says_so_when_the_person_denies(server: servers.Server, tmp_path: Path) -> None:
    browser, person = BrowserStub(tmp_path), Person(server.url)
    process = started("--url", server.url, BROWSER=browser.command)
    left = person.browser.press(person.consent_page(browser.address()), "deny").left
    plain().get(left, timeout=5)
    printed = end(process)
    assert process.returncode == 1
    assert "access_denied" in printed and "choose Allow" in printed


def test_an_answer_to_another_request_is_not_taken(server: servers.Server, tmp_path: Path) -> None:
    browser = BrowserStub(tmp_path)
    process = started("--url", server.url, BROWSER=browser.command)
    asked = parameters_of(browser.address())
    plain().get(f"{asked['redirect_uri']}?code=stolen&state=guessed&iss={server.url}", timeout=5)
    printed = end(process)
    assert process.returncode == 1 and "another request" in printed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ended_early_it_leaves_no_server_behind(tmp_path: Path, number: int) -> None:
    browser = BrowserStub(tmp_path)
    process = started(BROWSER=browser.command)
    url = re.match(r"http://localhost:\d+", browser.address())
    assert url and servers.is_listening(url[0])
    process.send_signal(number)
    printed = end(process)
    assert process.returncode != 0 and "Traceback" not in printed
    assert not servers.is_listening(url[0])


def test_the_listener_keeps_what_is_not_the_answer_apart() -> None:
    listener = Listener()
    try:
        assert plain().get(f"{listener.origin}/favicon.ico", timeout=5).status_code == 404
        assert listener.wait(0.01) is None
        plain().get(f"{listener.redirect_uri}?code=c&state=s", timeout=5)
        assert listener.wait(5) == {"code": "c", "state": "s"}
    finally:
        listener.close()
