"""The id that joins a person's error page, the log and the audit. Imported before Django is set up."""

import contextvars
import secrets

trace_id: contextvars.ContextVar[str] = contextvars.ContextVar("trace_id", default="")
"""Set by the guard for each request; empty outside of one."""


def new_trace_id() -> str:
    return secrets.token_hex(8)
