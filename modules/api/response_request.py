"""The body of /v1/responses, and the chat request that it amounts to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from modules.api.chat_request import ArgumentsSchema, ChatCompletionRequest, Json, RefusalPart
from modules.api.common import CommonRequest
from modules.api.tolerance import Tolerant
from modules.generation.sampling import MAX_TOKENS


class InputText(Tolerant):
    """A piece of text."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Any = None
    """Accepted, because answers carry it."""
    logprobs: Any = None
    """Accepted, because answers carry it."""


class InputImage(Tolerant):
    """A picture."""

    type: Literal["input_image"]
    image_url: str
    detail: Any = None
    """Accepted, without effect."""


InputPart = Annotated[InputText | RefusalPart | InputImage, Field(discriminator="type")]


class MessageItem(Tolerant):
    """A turn of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | tuple[InputPart, ...]
    id: str | None = None
    status: str | None = None


class CallItem(Tolerant):
    """A call that the model made earlier."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None


class OutputItem(Tolerant):
    """What a called function answered."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | tuple[InputText, ...]
    id: str | None = None
    status: str | None = None


class ReasoningItem(Tolerant):
    """What a model thought before an earlier reply: accepted, without effect."""

    type: Literal["reasoning"]
    id: Any = None
    status: Any = None
    summary: Any = None
    content: Any = None
    encrypted_content: Any = None


class ReferenceItem(Tolerant):
    """An earlier item by its id. Only what was thought can be left out without a loss."""

    type: Literal["item_reference"]
    id: str

    @model_validator(mode="after")
    def _is_a_thought(self) -> Self:
        if not self.id.startswith("rs_"):
            raise ValueError(
                "an item_reference cannot be followed: nothing is stored here. Send the item itself (store: false)"
            )
        return self


def _kind_of_item(item: Any) -> Any:
    """A turn may come without a type."""
    return item.get("type") or "message" if isinstance(item, dict) else getattr(item, "type", None)


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[OutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[ReferenceItem, Tag("item_reference")],
    Discriminator(_kind_of_item),
]


class FunctionTool(Tolerant):
    """A function that the model may call."""

    type: Literal["function"]
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: ArgumentsSchema | None = None
    strict: bool | None = None


class NamedFunction(Tolerant):
    """The one function that must be called."""

    type: Literal["function"]
    name: str


class PlainText(Tolerant):
    """Free text."""

    type: Literal["text"]


class JsonObject(Tolerant):
    """Any JSON object, or one that follows a schema."""

    type: Literal["json_object"]
    schema_: Json | None = Field(None, alias="schema")


class JsonSchema(Tolerant):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """Accepted, without effect."""
    schema_: Json = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextOptions(Tolerant):
    """The form of the reply."""

    format: Annotated[PlainText | JsonObject | JsonSchema, Field(discriminator="type")] | None = None
    verbosity: str | None = None
    """Accepted, without effect."""


class Reasoning(Tolerant):
    """How much to think first."""

    effort: str | None = None
    """Handed to the chat template, for models that know it."""
    summary: str | None = None
    """Accepted, without effect."""


class ResponseRequest(CommonRequest):
    """A conversation to answer, in the newer form of the protocol. Nothing is stored: each request brings all of it."""

    conversation: ClassVar[str | None] = "input"
    input: str | tuple[Item, ...]
    """A question, or the conversation so far."""
    instructions: str | None = None
    """What the model is told before the conversation."""
    max_output_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    """The most tokens the reply may have; left out, it is what is left of the context."""
    text: TextOptions | None = None
    """The form of the reply."""
    tools: tuple[FunctionTool, ...] = Field((), max_length=128)
    """Functions that the model may call."""
    tool_choice: Literal["none", "auto", "required"] | NamedFunction = "auto"
    """Whether to call a function."""
    parallel_tool_calls: bool = True
    """Whether the model may call several functions in one reply."""
    truncation: Literal["auto", "disabled"] = "disabled"
    """auto leaves out the oldest turns of a conversation that is too long."""
    reasoning: Reasoning | None = None
    """For models that think first."""
    previous_response_id: str | None = None
    """Not supported, because nothing is stored: send the whole conversation as input."""
    include: tuple[str, ...] | None = None
    """`message.output_text.logprobs` reports the log-probabilities of the text; everything else is without effect."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """How many alternatives to report for each token of the text."""

    @classmethod
    def in_our_words(cls, said: Mapping[str, Any]) -> dict[str, Any]:
        """-1 is no bound of the length."""
        values = super().in_our_words(said)
        if values.get("max_output_tokens") == -1:
            del values["max_output_tokens"]
        return values

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.previous_response_id is not None:
            raise ValueError(
                "previous_response_id cannot be followed: nothing is stored here. Send the whole conversation as input"
            )
        if self.n != 1:
            raise ValueError("n must be 1 here; /v1/chat/completions makes several replies")
        if "max_tokens" in self.model_fields_set:
            raise ValueError("max_tokens is called max_output_tokens here")
        if not self.input:
            raise ValueError("input is empty")
        return self

    @property
    def logprobs(self) -> bool:
        """Whether the tokens of the text are asked for."""
        return self.top_logprobs is not None or "message.output_text.logprobs" in (self.include or ())

    def as_chat(self) -> ChatCompletionRequest:
        """The same in the words of chat. Raises ValidationError."""
        shared = set(CommonRequest.model_fields) - {"stream_options", "n", "max_tokens"}
        fields: dict[str, Any] = self.model_dump(include=self.model_fields_set & shared)
        fields["messages"] = list(self._messages())
        fields["parallel_tool_calls"] = self.parallel_tool_calls
        fields["tools"] = [
            {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)} for tool in self.tools
        ]
        choice = self.tool_choice
        fields["tool_choice"] = (
            {"type": "function", "function": {"name": choice.name}} if isinstance(choice, NamedFunction) else choice
        )
        if self.max_output_tokens is not None:
            fields["max_tokens"] = self.max_output_tokens
        if self.logprobs:
            fields |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        if self.truncation == "auto":
            fields["truncate"] = "oldest"
        if self.reasoning is not None and self.reasoning.effort is not None:
            fields["reasoning_effort"] = self.reasoning.effort
        match self.text.format if self.text is not None else None:
            case JsonObject(schema_=schema):
                fields["response_format"] = {"type": "json_object", "schema": schema}
            case JsonSchema(name=name, schema_=schema):
                fields["response_format"] = {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}
            case _:
                pass
        return ChatCompletionRequest.model_validate(fields)

    def _messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self.instructions is not None:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        for item in self.input:
            match item:
                case MessageItem(role=role, content=content):
                    parts = content if isinstance(content, str) else [_part(part) for part in content]
                    messages.append({"role": role, "content": parts})
                case OutputItem(call_id=call, output=output):
                    told = output if isinstance(output, str) else [_part(part) for part in output]
                    messages.append({"role": "tool", "tool_call_id": call, "content": told})
                case CallItem(call_id=call, name=name, arguments=arguments):
                    made = {"id": call, "type": "function", "function": {"name": name, "arguments": arguments}}
                    if messages and messages[-1]["role"] == "assistant":
                        messages[-1].setdefault("tool_calls", []).append(made)
                    else:
                        messages.append({"role": "assistant", "content": None, "tool_calls": [made]})
                case ReasoningItem() | ReferenceItem():
                    pass
        return messages


def _part(part: InputText | RefusalPart | InputImage) -> dict[str, Any]:
    if not isinstance(part, InputImage):
        return {"type": "text", "text": part.text}
    return {"type": "image_url", "image_url": {"url": part.image_url}}
