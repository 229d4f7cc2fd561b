"""The body of /v1/chat/completions: a conversation, tools, and the form of the reply."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from modules.api.common import CommonRequest
from modules.generation.sampling import MAX_TOKENS
from modules.library.modes import Mode
from modules.settings.declare import Settings, setting

Json = dict[str, Any]


class TextPart(Settings):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImageAddress(Settings):
    """Where a picture is."""

    url: str = Field(min_length=1)
    """data:image/…;base64,… or, where the server allows it, an http address."""
    detail: Literal["auto", "low", "high"] | None = None
    """Accepted, without effect."""


class ImagePart(Settings):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageAddress


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class CalledFunction(Settings):
    """What the model wants to have called."""

    name: str
    arguments: str
    """JSON, as the model wrote it."""


class ToolCall(Settings):
    """One call in an earlier turn of the assistant."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Settings):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | tuple[Part, ...] | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    """Of the assistant."""
    tool_call_id: str | None = None
    """Of a tool's answer: the call that it answers."""
    refusal: str | None = None
    """Accepted, because replies carry it."""

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("the message has no content")
        return self


class FunctionSpec(Settings):
    """A function that the model may call."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: Json | None = None
    """JSON schema of its arguments."""
    strict: bool | None = None
    """Accepted; a forced call always follows the schema."""


class Tool(Settings):
    """A tool of the request."""

    type: Literal["function"]
    function: FunctionSpec


class FunctionName(Settings):
    """The name of one of the tools."""

    name: str


class NamedTool(Settings):
    """The one tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class TextFormat(Settings):
    """Free text."""

    type: Literal["text"]


class JsonFormat(Settings):
    """Any JSON object, or one that follows a schema."""

    type: Literal["json_object"]
    schema_: Json | None = Field(None, alias="schema")


class SchemaSpec(Settings):
    """A JSON schema with a name."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """Accepted, without effect."""
    schema_: Json = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None
    """Accepted; the schema is always kept."""


class SchemaFormat(Settings):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: SchemaSpec


ResponseFormat = Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")]


class ChatCompletionRequest(CommonRequest):
    """A conversation to answer. Every sampling setting of the Parameters tab is a field."""

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

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
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
