"""From the annotations of a tool function to JSON Schema, compiled once when the tool is declared."""

import inspect
import json
import logging
import types as python_types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.json_schema import GenerateJsonSchema

from mcp_gateway.errors import ToolError

logger = logging.getLogger(__name__)

MOST_FAULTS_TOLD = 10


class _Untitled(GenerateJsonSchema):
    """Without the titles that only repeat the names: a model pays for every word it reads."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


class Arguments:
    """The parameters of a tool function, all but the first, as a client sees and sends them."""

    def __init__(self, function: Callable[..., Any]) -> None:
        hints = get_type_hints(function, include_extras=True)
        parameters = list(inspect.signature(function).parameters.values())[1:]
        self.names = [parameter.name for parameter in parameters]
        if bare := [name for name in self.names if name not in hints]:
            raise TypeError(f"the tool {function.__name__}: annotate {', '.join(bare)}; the type becomes the schema")
        # Aliased: a parameter may be called `copy` or `json`, which a pydantic model keeps for itself.
        fields: dict[str, Any] = {
            f"argument_{number}": (
                Annotated[hints[parameter.name], Field(alias=parameter.name)],
                ... if parameter.default is parameter.empty else parameter.default,
            )
            for number, parameter in enumerate(parameters)
        }
        self._model: type[BaseModel] = create_model(
            function.__name__, __config__=ConfigDict(extra="forbid", hide_input_in_errors=True), **fields
        )
        self.schema = self._model.model_json_schema(schema_generator=_Untitled)
        self.schema.pop("title", None)
        self.schema.setdefault("properties", {})

    def parse(self, unverified_arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments of the function. Raises ToolError with what the model must mend."""
        unknown = [name for name in unverified_arguments if name not in self.names]
        if len(unknown) > MOST_FAULTS_TOLD:  # the model would describe each of them
            has = ", ".join(self.names) or "none"
            raise ToolError(f"The arguments are not right: {len(unknown)} of them are not this tool's (it has: {has}).")
        try:
            values = self._model.model_validate(unverified_arguments)
        except ValidationError as error:
            raise ToolError(self._faults(error)) from None
        return {name: getattr(values, f"argument_{number}") for number, name in enumerate(self.names)}

    def _faults(self, error: ValidationError) -> str:
        faults = [self._fault(fault) for fault in error.errors(include_url=False)[:MOST_FAULTS_TOLD]]
        return f"The arguments are not right: {'; '.join(faults)}. Correct them and call the tool again."

    def _fault(self, fault: Any) -> str:
        place = ".".join(str(step) for step in fault["loc"])[:80]
        match fault["type"]:
            case "extra_forbidden":
                return f"{place!r} is not an argument of this tool (it has: {', '.join(self.names) or 'none'})"
            case "missing":
                return f"{place!r} is missing"
        return f"{place!r}: {fault['msg'][:1].lower()}{fault['msg'][1:]}"


class Result:
    """What a tool function returns. Objects are structured as they are, other values under `result`, text is text."""

    def __init__(self, function: Callable[..., Any]) -> None:
        annotation = get_type_hints(function, include_extras=True).get("return", str)
        self.schema: dict[str, Any] | None = None
        if annotation in (str, None, python_types.NoneType):
            return
        self._adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        schema = self._adapter.json_schema(mode="serialization", schema_generator=_Untitled)
        # Before 2026-07-28 structured content is an object or nothing.
        self._wrapped = schema.get("type") != "object"
        if self._wrapped:
            definitions = {"$defs": schema.pop("$defs")} if "$defs" in schema else {}
            schema = {"type": "object", "properties": {"result": schema}, "required": ["result"], **definitions}
        schema.pop("title", None)
        self.schema = schema

    def shape(self, value: Any) -> tuple[dict[str, Any] | None, str]:
        """Structured content, if any, and the same as text. Raises ToolError when `value` is not what was promised."""
        if self.schema is None:
            return None, "" if value is None else str(value)
        try:
            structured = self._adapter.dump_python(self._adapter.validate_python(value), mode="json")
        except ValidationError as error:
            # Places and kinds only: the values are the person's.
            logger.error("result of another form: %s", [(fault["loc"], fault["type"]) for fault in error.errors()])
            raise ToolError(
                "The API's answer does not have the promised form. Trying again will not help; tell the operator."
            ) from None
        if self._wrapped:
            structured = {"result": structured}
        return structured, json.dumps(structured, ensure_ascii=False)
