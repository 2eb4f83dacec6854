"""A line of the log is one line, whatever a stranger wrote into it."""

import logging

from cair.log_lines import TracedFormatter


def line(message: str, *arguments: object) -> str:
    return TracedFormatter().format(logging.LogRecord("x", logging.INFO, "", 0, message, arguments, None))


def test_what_a_stranger_sent_makes_no_second_line() -> None:
    forged = line("refused: %s", "a\n2026-01-01 00:00:00 INFO cair: all is well\r\x1b[2J\u202e\u2028b")
    assert len(forged.splitlines()) == 1
    assert r"a\n2026-01-01" in forged and "\x1b" not in forged and r"\u202e\u2028b" in forged


def test_letters_of_any_language_stay_readable() -> None:
    assert "“Añadir” 添加" in line("“Añadir” %s", "添加")
