"""The body of /v1/chat/completions: a conversation, tools, and the form of the reply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from modules.api.common import CommonRequest
from modules.api.tolerance import Tolerant
from modules.generation.sampling import MAX_TOKENS
from modules.library.modes import Mode
from modules.settings.declare import setting

Json = dict[str, Any]
OLDER: Mapping[str, str] = {
    "instruction_template": "template",
    "instruction_template_str": "template",
    "continue_": "continue_final_message",
}
"""Fields of text-generation-webui's chat, and ours that mean the same."""


class TextPart(Tolerant):
    """A piece of text, as chat and /v1/responses call it."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class RefusalPart(Tolerant):
    """A piece of an earlier reply in which the assistant refused."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


class ImageAddress(Tolerant):
    """Where a picture is."""

    url: str = Field(min_length=1)
    """data:image/…;base64,… or, where the server allows it, an http address."""
    detail: Any = None
    """Accepted, without effect."""


class ImagePart(Tolerant):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageAddress


Part = Annotated[TextPart | RefusalPart | ImagePart, Field(discriminator="type")]


class CalledFunction(Tolerant):
    """What the model wants to have called."""

    name: str
    arguments: str
    """JSON, as the model wrote it."""


class ToolCall(Tolerant):
    """One call in an earlier turn of the assistant."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Any = None
    """Accepted, because streams carry it."""


class ChatMessage(Tolerant):
    """One turn of the conversation, as a client writes it or as a reply of this server was."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    """function is the older name of tool."""
    content: str | tuple[Part, ...] | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    """Of the assistant."""
    tool_call_id: str | None = None
    """Of a tool's answer: the call that it answers."""
    reasoning_content: str | None = None
    """What the assistant thought before an earlier reply; handed to the chat template."""
    refusal: str | None = None
    """Accepted, because replies carry it."""
    annotations: Any = None
    """Accepted, because clients carry it."""
    audio: Any = None
    """Accepted, because clients carry it."""
    id: Any = None
    """Accepted, because clients carry it."""

    @classmethod
    def in_our_words(cls, said: Mapping[str, Any]) -> dict[str, Any]:
        """The older function_call is a call of a tool, and an empty list of calls is none."""
        values = dict(said)
        calls, older = values.pop("tool_calls", None), values.pop("function_call", None)
        thought = values.pop("reasoning", None)
        if calls:
            values["tool_calls"] = calls
        elif older:
            values["tool_calls"] = [{"id": "call_0", "function": older}]
        if isinstance(thought, str):
            values.setdefault("reasoning_content", thought)
        return values

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return (*super().names(), "function_call", "reasoning")

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise ValueError("the message has no content")
        return self


def _of_an_object(schema: Json) -> Json:
    """The arguments of a call are an object; with another schema a forced call could not have any."""
    kind = schema.get("type", "object")
    if kind == "object" or (isinstance(kind, list) and "object" in kind):
        return schema
    error = PydanticCustomError("parameters_type", "the arguments of a call are an object; give it the type 'object'")
    raise ValidationError.from_exception_data("parameters", [{"type": error, "loc": ("type",), "input": kind}])


ArgumentsSchema = Annotated[Json, AfterValidator(_of_an_object)]
"""A JSON schema of the arguments of a function."""


class FunctionSpec(Tolerant):
    """A function that the model may call."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: ArgumentsSchema | None = None
    """JSON schema of its arguments; its type is object."""
    strict: bool | None = None
    """Accepted; a forced call always follows the schema."""


class Tool(Tolerant):
    """A tool of the request."""

    type: Literal["function"]
    function: FunctionSpec


class FunctionName(Tolerant):
    """The name of one of the tools."""

    name: str


class NamedTool(Tolerant):
    """The one tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class TextFormat(Tolerant):
    """Free text."""

    type: Literal["text"]


class JsonFormat(Tolerant):
    """Any JSON object, or one that follows a schema."""

    type: Literal["json_object"]
    schema_: Json | None = Field(None, alias="schema")


class SchemaSpec(Tolerant):
    """A JSON schema with a name."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """Accepted, without effect."""
    schema_: Json = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None
    """Accepted; the schema is always kept."""


class SchemaFormat(Tolerant):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: SchemaSpec


ResponseFormat = Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")]


class ChatCompletionRequest(CommonRequest):
    """A conversation to answer. Every sampling setting of the Parameters tab is a field."""

    conversation: ClassVar[str | None] = "messages"
    messages: tuple[ChatMessage, ...] = Field(min_length=1)
    """The conversation so far."""
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    """The newer name of max_tokens."""
    max_tokens: int = setting(512, min=1, max=MAX_TOKENS, group="Length", aliases=["max_new_tokens"])
    """The most tokens the reply may have; left out, it is what is left of the context."""
    logprobs: bool = False
    """Report the log-probability of each token of the reply."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """How many alternatives to report for each token; needs logprobs."""
    response_format: ResponseFormat | None = None
    """Text, any JSON object, or JSON that follows a schema."""
    tools: tuple[Tool, ...] = Field((), max_length=128)
    """Functions that the model may call, where its template knows tools."""
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    """Whether to call a tool: never, as the model likes, one of them, or this one."""
    parallel_tool_calls: bool = True
    """Whether the model may call several tools in one reply."""
    reasoning_effort: str | None = None
    """Handed to the chat template, for models that know it."""
    chat_template_kwargs: Json | None = None
    """More variables for the chat template, such as enable_thinking."""
    template: str | None = None
    """The name of a chat template of the server, or Jinja source, in place of the model's own."""
    character: str | None = None
    """The name of a character of the server, whom the model plays."""
    mode: Mode = "instruct"
    """How the conversation is put to the model: instruct by its template, chat as lines with names, chat-instruct as both."""
    user_name: str = Field("", max_length=80)
    """What the character calls the person it speaks with."""
    continue_final_message: bool = False
    """The last message is the beginning of the reply, and is continued."""

    @classmethod
    def in_our_words(cls, said: Mapping[str, Any]) -> dict[str, Any]:
        """-1 is no bound of the length, a form without a type is none, and enable_thinking is a variable of the template."""
        values = super().in_our_words(said)
        for name in ("max_tokens", "max_completion_tokens"):
            if values.get(name) in (-1, MAX_TOKENS):
                del values[name]
        for theirs, ours in OLDER.items():
            if (value := values.pop(theirs, None)) is not None:
                values.setdefault(ours, value)
        if values.get("response_format") in ({}, {"type": ""}, {"type": None}):
            del values["response_format"]
        if isinstance(thinking := values.pop("enable_thinking", None), bool):
            variables = values.get("chat_template_kwargs")
            values["chat_template_kwargs"] = {"enable_thinking": thinking, **(variables if isinstance(variables, dict) else {})}
        return values

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return (*super().names(), *OLDER, "enable_thinking")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise ValueError("continue_final_message needs a last message of the assistant")
        if isinstance(self.tool_choice, NamedTool):
            wanted = self.tool_choice.function.name
            if wanted not in {tool.function.name for tool in self.tools}:
                raise ValueError(f"tool_choice names {wanted}, which is not among the tools")
        elif self.tool_choice == "required" and not self.tools:
            raise ValueError("tool_choice 'required' needs tools")
        if self.tools and self.mode != "instruct":
            raise ValueError("mode must be instruct for tools, because only the model's template has a place for them")
        if self.response_format is not None and self.response_format.type != "text" and self.must_call:
            raise ValueError("response_format and a forced tool call cannot be had together")
        return self

    @property
    def must_call(self) -> bool:
        """Whether the reply has to be a call of a tool."""
        return isinstance(self.tool_choice, NamedTool) or self.tool_choice == "required"

    @property
    def offered_tools(self) -> tuple[Tool, ...]:
        """The tools that the model gets to see."""
        return () if self.tool_choice == "none" else self.tools
