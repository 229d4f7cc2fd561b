"""Chat templates: each file renders as its golden file says, the right one is chosen, and YAML of 2023 is understood."""

from __future__ import annotations

from pathlib import Path

import pytest

from modules.errors import NoChatTemplate, NotFound, UserError
from modules.generation.template import render_chat
from modules.generation.types import Message
from modules.library.templates import TemplateLibrary, from_turn_template, stop_texts

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden" / "templates"
LIBRARY = TemplateLibrary(ROOT / "prompts" / "templates")
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

QUESTION = Message("user", "  What is 2 + 2?\n")
ANSWER = Message("assistant", " It is 4. ")
NEXT = Message("user", "谢谢 🙂")
CONVERSATIONS = {
    "one question": [QUESTION],
    "with a system text, answered before": [Message("system", "You are brief."), QUESTION, ANSWER, NEXT],
    "two answers": [QUESTION, ANSWER, NEXT, Message("assistant", "不客气")],
}


def rendered(name: str) -> str:
    """What the golden file of a template keeps: every conversation, with the visible border of each."""
    parts = []
    for title, messages in CONVERSATIONS.items():
        last_is_answer = messages[-1].role == "assistant"
        text = render_chat(LIBRARY.read(name), messages, add_generation_prompt=not last_is_answer, variables=TOKENS)
        parts.append(f"=== {title}\n{text}|\n")
    return "".join(parts)


@pytest.mark.parametrize("name", LIBRARY.names())
def test_a_template_renders_as_its_golden_file_says(name: str) -> None:
    golden = GOLDEN / f"{name}.txt"
    assert golden.exists(), f"{golden.name} is missing; check the text and write it:\n{rendered(name)}"
    assert rendered(name) == golden.read_text(encoding="utf-8")


def test_every_golden_file_belongs_to_a_template() -> None:
    assert sorted(file.stem for file in GOLDEN.glob("*.txt")) == sorted(LIBRARY.names())


def meta_chat(dialog: list[Message]) -> str:
    """generation.py of Meta's llama repository, with text in place of tokens."""
    if dialog[0].role == "system":
        first = Message("user", "<<SYS>>\n" + dialog[0].content + "\n<</SYS>>\n\n" + dialog[1].content)
        dialog = [first, *dialog[2:]]
    pairs = zip(dialog[::2], dialog[1::2], strict=False)
    text = "".join(f"<s>[INST] {prompt.content.strip()} [/INST] {answer.content.strip()} </s>" for prompt, answer in pairs)
    return text + (f"<s>[INST] {dialog[-1].content.strip()} [/INST]" if dialog[-1].role == "user" else "")


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_llama_2_is_rendered_as_by_meta(messages: list[Message]) -> None:
    assert render_chat(LIBRARY.read("Llama-2"), messages, variables=TOKENS) == meta_chat(messages)


def test_llama_2_which_wants_turns_that_alternate_gets_two_of_the_user_as_one() -> None:
    both = Message("user", f"{QUESTION.content}\n\n{NEXT.content}")
    assert render_chat(LIBRARY.read("Llama-2"), [QUESTION, NEXT], variables=TOKENS) == meta_chat([both])


@pytest.mark.parametrize("name", LIBRARY.names())
def test_a_reply_that_was_begun_can_be_continued(name: str) -> None:
    messages = [QUESTION, Message("assistant", "The answer is")]
    assert render_chat(LIBRARY.read(name), messages, continue_reply=True, variables=TOKENS).endswith("The answer is")


@pytest.mark.parametrize("name", LIBRARY.names())
def test_a_system_text_within_the_conversation_is_not_lost(name: str) -> None:
    messages = [QUESTION, ANSWER, Message("system", "Answer in French."), NEXT]
    assert "Answer in French." in render_chat(LIBRARY.read(name), messages, variables=TOKENS)


@pytest.mark.parametrize(
    ("model", "template"),
    [
        ("TheBloke_Llama-2-7B-chat-GPTQ", "Llama-2"),
        ("llama-2-13b-chat.Q4_K_M.gguf", "Llama-2"),
        ("Meta-Llama-3-8B-Instruct", "Llama-3"),
        ("FlagAlpha_Atom-7B-Chat", "Atom"),
        ("FlagAlpha_Llama2-Chinese-7b-Chat", "Atom"),
        ("TheBloke_vicuna-7B-v1.5-GPTQ", "Vicuna-v1.1"),
        ("TheBloke_vicuna-13B-1.1-GPTQ-4bit-128g", "Vicuna-v1.1"),
        ("vicuna-13b-v0", "Vicuna-v0"),
        ("TheBloke_guanaco-7B-HF", "Guanaco"),
        ("chavinlo_alpaca-13b", "Alpaca"),
        ("WizardLM-7B-GPTQ", "WizardLM"),
        ("WizardLM-13B-V1.2", "Vicuna-v1.1"),
        ("koala-7b", "Koala"),
        ("mosaicml_mpt-7b-chat", "MPT-Chat"),
        ("mosaicml_mpt-7b-instruct", "MPT-Instruct"),
        ("mosaicml_mpt-7b-storywriter", "MPT-StoryWriter"),
        ("mistral-7b-instruct-v0.2.Q4_K_M.gguf", "Mistral"),
        ("OpenAssistant_oasst-sft-4-pythia-12b-epoch-3.5", "Open-Assistant"),
        ("stablelm-tuned-alpha-7b", "StableLM"),
        ("Qwen1.5-7B-Chat", "ChatML"),
    ],
)
def test_a_template_is_chosen_by_the_name_people_know_the_model_by(model: str, template: str) -> None:
    chosen = LIBRARY.fitting(model)
    assert chosen is not None
    assert (chosen.origin, chosen.source) == (template, LIBRARY.read(template))


def test_a_template_that_is_asked_for_goes_before_the_models_own_and_that_before_one_that_fits() -> None:
    def resolved(name: str, own: str | None, wanted: str = "") -> tuple[str, str]:
        chosen = LIBRARY.resolve_chat_template(name, own, wanted)
        return chosen.origin, chosen.source

    own, source = "{{ messages }}", "{% for message in messages %}{{ message.content }}{% endfor %}"
    assert resolved("Llama-2-7b-chat", own, "ChatML") == ("ChatML", LIBRARY.read("ChatML"))
    assert resolved("Llama-2-7b-chat", own, source) == ("request", source)
    assert resolved("Llama-2-7b-chat", own) == ("model", own)
    assert resolved("Llama-2-7b-chat", None) == ("Llama-2", LIBRARY.read("Llama-2"))
    with pytest.raises(NotFound, match="called Ghost"):
        resolved("Llama-2-7b-chat", own, "Ghost")
    with pytest.raises(NoChatTemplate, match="no chat template"):
        resolved("gpt2", None)


@pytest.mark.parametrize("model", ["gpt2", "Llama-2-7b-hf", "mpt-7b", "SmolLM2-135M", "bloom-560m"])
def test_a_base_model_has_none(model: str) -> None:
    assert LIBRARY.fitting(model) is None


def test_every_rule_names_a_template_that_exists() -> None:
    import yaml

    rules = yaml.safe_load((ROOT / "prompts" / "templates" / "by-name.yaml").read_text(encoding="utf-8"))
    assert {rule["template"] for rule in rules} <= set(LIBRARY.names())


def test_a_yaml_template_of_2023_becomes_jinja(tmp_path: Path) -> None:
    (tmp_path / "Old.yaml").write_text(
        'user: "### Human:"\nbot: "### Assistant:"\n'
        'turn_template: "<|user|> <|user-message|>\\n<|bot|> <|bot-message|>\\n"\n'
        'context: "A \\"chat\\" with {{ braces }}.\\n\\n"\n',
        encoding="utf-8",
    )
    source = TemplateLibrary(tmp_path).read("Old")
    text = render_chat(source, [Message("user", "Hi"), Message("assistant", "Ho"), Message("user", "Well?")], variables=TOKENS)
    assert text == '<s>A "chat" with {{ braces }}.\n\n### Human: Hi\n### Assistant: Ho\n### Human: Well?\n### Assistant:'
    with_system = render_chat(source, [Message("system", "Be kind."), Message("user", "Hi")], variables=TOKENS)
    assert with_system == '<s>A "chat" with {{ braces }}.\n\nBe kind.\n\n### Human: Hi\n### Assistant:'


def test_a_yaml_template_may_say_where_the_system_text_stands_and_count_rounds() -> None:
    source = from_turn_template(
        {
            "context": "[<|system-message|>]\n",
            "system_message": "default",
            "turn_template": "(<|round|>) 问：<|user-message|>\n答：<|bot-message|>\n",
        }
    )
    messages = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    assert render_chat(source, messages) == "[default]\n(0) 问：a\n答：b\n(1) 问：c\n答："
    assert render_chat(source, [Message("system", "mine"), Message("user", "a")]) == "[mine]\n(0) 问：a\n答："


def test_the_begin_token_is_not_written_twice() -> None:
    source = from_turn_template({"turn_template": "<s>Human: <|user-message|>\n</s><s>Assistant: <|bot-message|>\n</s>"})
    assert render_chat(source, [Message("user", "a")], variables=TOKENS) == "<s>Human: a\n</s><s>Assistant:"


def test_a_yaml_template_without_places_for_the_messages_is_refused() -> None:
    with pytest.raises(UserError, match="user-message"):
        from_turn_template({"turn_template": "hello"})


def test_stop_texts_stand_in_a_comment() -> None:
    assert stop_texts(LIBRARY.read("Vicuna-v0")) == ("### Human:", "\n###")
    assert stop_texts(LIBRARY.read("Llama-2")) == ()
    assert stop_texts("{# stop: [broken #}") == ()


def test_a_template_is_saved_read_and_deleted(tmp_path: Path) -> None:
    library = TemplateLibrary(tmp_path)
    library.save("Mine", "{{ messages[0]['content'] }}")
    assert library.names() == ["Mine"] and library.read("Mine") == "{{ messages[0]['content'] }}"
    library.delete("Mine")
    assert library.names() == []
    with pytest.raises(UserError, match="line 1"):
        library.save("Broken", "{% if %}")
    assert library.names() == []


@pytest.mark.parametrize("name", ["../server", "/etc/passwd", "a/b", "", ".hidden", "by-name"])
def test_a_name_never_leaves_the_folder(name: str) -> None:
    with pytest.raises((NotFound, UserError)):
        LIBRARY.read(name)
