"""How a log line looks: when, how grave, who says it, what, and the trace id that joins it to a page and the audit."""

import logging

from oauth_relay.traces import trace_id


class TracedFormatter(logging.Formatter):
    """One line for each record; a trace id at its end where the record belongs to a request."""

    def __init__(self) -> None:
        super().__init__("{asctime} {levelname:<7} {name}: {message}", style="{")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in super().formatMessage(record))
        trace = trace_id.get()
        return f"{line} [{trace}]" if trace else line
