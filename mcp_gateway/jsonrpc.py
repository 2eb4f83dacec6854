"""The envelope (JSON-RPC 2.0): strict on the way in, compact on the way out."""

import json
from typing import Any

from mcp_types import (
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
)
from pydantic import TypeAdapter, ValidationError

DEEPEST = 64
"""Levels of nesting. Any parser or API behind us may recurse; none needs more."""

MOST_VALUES = 20_000
"""Values in one message, small ones too: each costs every reader behind us far more than its bytes (measured: 340 000
empty lists held the event loop for half a second)."""

Message = dict[str, Any]

_reply: TypeAdapter[JSONRPCResponse | JSONRPCError] = TypeAdapter(JSONRPCResponse | JSONRPCError)


class Malformed(Exception):
    """Not one JSON-RPC message. Carries the response to send, which has no id."""

    def __init__(self, code: int, message: str) -> None:
        self.response = error(None, code, message)
        super().__init__(message)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """One JSON object. Two members of one name are refused: two readers would see two objects (T32)."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def parse(body: bytes) -> Message:
    """The one message in `body`, as far as an envelope goes. Raises Malformed.

    The object returned is the one that is judged and dispatched; nothing parses the body again.
    """
    try:
        message = json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_no_constant)
        if b"\\u" in body:
            json.dumps(message, ensure_ascii=False).encode()  # a lone surrogate breaks whoever stores it
    except (ValueError, RecursionError):
        raise Malformed(PARSE_ERROR, "Parse error") from None
    if body.count(b",") + body.count(b"[") + body.count(b"{") > DEEPEST:
        _check_shape(message)
    if not isinstance(message, dict):
        raise Malformed(INVALID_REQUEST, "Body must be a single JSON-RPC request or notification object")
    return message


def _check_shape(message: Any) -> None:
    """Raises Malformed where the message is deeper, or has more values, than anybody needs."""
    level, seen = [message], 0
    for _ in range(DEEPEST + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        seen += len(level)
        if seen > MOST_VALUES:
            raise Malformed(PARSE_ERROR, f"Parse error: more than {MOST_VALUES} values")
        if not level:
            return
    raise Malformed(PARSE_ERROR, f"Parse error: more than {DEEPEST} levels of nesting")


def is_request(message: Message) -> bool:
    return "id" in message and _validates(JSONRPCRequest, message)


def is_notification(message: Message) -> bool:
    # JSON-RPC 2.0 §4.1: without an "id" member. A request whose id is malformed is owed an error, not silence.
    return "id" not in message and _validates(JSONRPCNotification, message)


def is_response(message: Message) -> bool:
    try:
        _reply.validate_python(message)
    except ValidationError:
        return False
    return "method" not in message


def _validates(model: type[JSONRPCRequest] | type[JSONRPCNotification], message: Message) -> bool:
    try:
        model.model_validate(message)
    except ValidationError:
        return False
    return True


def result(request_id: Any, value: dict[str, Any]) -> Message:
    return {"jsonrpc": "2.0", "id": request_id, "result": value}


def error(request_id: Any, code: int, message: str, data: Any = None) -> Message:
    fault = {"code": code, "message": message}
    return {"jsonrpc": "2.0", "id": request_id, "error": fault if data is None else {**fault, "data": data}}


def error_from(request_id: Any, fault: ErrorData) -> Message:
    return error(request_id, fault.code, fault.message, fault.data)


def notification(method: str, params: Any) -> Message:
    return {"jsonrpc": "2.0", "method": method, "params": dict(params or {})}


def encode(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def event(message: Message) -> bytes:
    """One server-sent event. The JSON is ASCII, so it holds no line break."""
    return b"event: message\r\ndata: " + encode(message) + b"\r\n\r\n"
