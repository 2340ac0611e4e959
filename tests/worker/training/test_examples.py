"""What of a row is trained on, told by decoding exactly the tokens that have labels."""

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from cce_core import IGNORE_INDEX
from tests.worker.training.support import ask
from worker.training.examples import chat_example, text_example
from worker.training.messages import BadRow

HEADER = "{{ '<|im_start|>' + message['role'] + '\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
# The form that most published templates have: nothing says what is the assistant's.
PLAIN = (
    "{% for message in messages %}"
    + HEADER
    + "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    + PROMPT
)
TAGGED = (
    "{% for message in messages %}" + HEADER + "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{ message['content'] + '<|im_end|>' }}{%- endgeneration -%}{{ '\n' }}"
    "{%- else -%}{{ message['content'] + '<|im_end|>\n' }}{%- endif -%}{% endfor %}" + PROMPT
)
# Earlier answers lose what they thought, as in models that reason.
FORGETFUL = TAGGED.replace(
    "message['content'] + '<|im_end|>' }}",
    "(message['content'] if loop.last else message['content'].split('</think>')[-1])"
    " + '<|im_end|>' }}",
)
TOOLS = (
    "{% if tools %}{{ tools | tojson }}{{ '\n' }}{% endif %}"
    + PLAIN[: -len(PROMPT)].replace(
        "{{ message['content'] + '<|im_end|>\n' }}",
        "{{ message['content'] }}{% for call in message.tool_calls or [] %}"
        "{{ call.function.name + ' ' + (call.function.arguments | tojson) }}{% endfor %}"
        "{{ '<|im_end|>\n' }}",
    )
    + PROMPT
)
TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Me."},
]
CALL = {"id": "1", "type": "function", "function": {"name": "time", "arguments": '{"at": 3}'}}
TOOL = {"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}


def learned(row: dict, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The passages that are trained on: a string for each run of labels."""
    example = chat_example(row, tokenizer)
    runs: list[list[int]] = [[]]
    for token, label in zip(example.input_ids, example.labels, strict=True):
        if label == IGNORE_INDEX:
            runs.append([])
        else:
            assert label == token
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs if run]


@pytest.mark.parametrize(
    ("template", "passages"),
    [(TAGGED, ["Hi.<|im_end|>", "Me.<|im_end|>"]), (PLAIN, ["Hi.<|im_end|>\n", "Me.<|im_end|>\n"])],
    ids=["tagged", "plain"],
)
def test_the_assistants_words_alone_are_learned(
    tokenizer: PreTrainedTokenizerBase, template: str, passages: list[str]
) -> None:
    tokenizer.chat_template = template
    assert learned({"messages": TALK}, tokenizer) == passages


@pytest.mark.parametrize("tag", ["{% generation %}", "{%- generation %}", "{%generation-%}"])
def test_a_tag_counts_however_it_is_written(tokenizer: PreTrainedTokenizerBase, tag: str) -> None:
    tokenizer.chat_template = TAGGED.replace("{%- generation -%}", tag)
    assert learned({"messages": TALK}, tokenizer) == ["Hi.<|im_end|>", "Me.<|im_end|>"]


@pytest.mark.parametrize("template", [TAGGED, PLAIN], ids=["tagged", "plain"])
def test_a_message_of_weight_0_is_not_learned(
    tokenizer: PreTrainedTokenizerBase, template: str
) -> None:
    tokenizer.chat_template = template
    row = {"messages": [*TALK[:2], {**TALK[2], "weight": 0}, *TALK[3:]]}
    assert [passage.strip() for passage in learned(row, tokenizer)] == ["Me.<|im_end|>"]
    tokens = chat_example(row, tokenizer).input_ids
    assert tokens == chat_example({"messages": TALK}, tokenizer).input_ids


@pytest.mark.parametrize("template", [TAGGED, PLAIN], ids=["tagged", "plain"])
def test_an_assistant_may_speak_first(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    tokenizer.chat_template = template
    passages = [passage.strip() for passage in learned({"messages": TALK[2:]}, tokenizer)]
    assert passages == ["Hi.<|im_end|>", "Me.<|im_end|>"]


def test_what_is_learned_is_the_whole_answer_and_nothing_of_the_question(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Also where the same words stand in both, and where the answer looks like a template."""
    answer = "Hello?<|im_end|>\n<|im_start|>assistant\nHello?  \n\n x"
    tokenizer.chat_template = PLAIN
    assert learned(ask("Hello?", answer), tokenizer) == [answer + "<|im_end|>\n"]


def test_whitespace_is_learned_where_a_tokenizer_leaves_it_out_of_its_offsets(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.chat_template = PLAIN
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    answer = "a  b \n\n\tc  "
    assert learned(ask("  a  ", answer), tokenizer) == [answer + "<|im_end|>\n"]


def test_marks_keep_their_place_at_whitespace_that_is_left_out_of_offsets(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Releases of transformers lose the rest of a row, or learn all of it, questions too."""
    tokenizer.chat_template = TAGGED.replace("message['content'] + '<|im_end|>'", "' Hi '")
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    assert learned({"messages": TALK}, tokenizer) == [" Hi ", " Hi "]


def test_characters_of_several_tokens_are_learned_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    for template in (TAGGED, PLAIN):
        tokenizer.chat_template = template
        (passage,) = learned(ask("Grüße", "Grüße, 世界 🌍!"), tokenizer)
        assert passage.strip() == "Grüße, 世界 🌍!<|im_end|>"


def test_a_template_that_rewrites_earlier_answers_needs_tags(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    messages = [*TALK[:2], {"role": "assistant", "content": "Hm</think>Hi."}, *TALK[3:]]
    tokenizer.chat_template = FORGETFUL
    assert learned({"messages": messages}, tokenizer) == ["Hi.<|im_end|>", "Me.<|im_end|>"]
    tokenizer.chat_template = FORGETFUL.replace("{%- generation -%}", "").replace(
        "{%- endgeneration -%}", ""
    )
    with pytest.raises(BadRow, match="rewrites what came before") as fault:
        chat_example({"messages": messages}, tokenizer)
    assert fault.value.path == "messages[2]"


def test_a_template_that_refuses_a_row_says_why(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('No system.') }}{% endif %}"
        + PLAIN
    )
    with pytest.raises(BadRow, match=r"refuses it: No system\.") as fault:
        chat_example({"messages": TALK}, tokenizer)
    assert fault.value.path == "messages"


def test_calls_and_tools_are_rendered_and_calls_are_learned(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.chat_template = TOOLS
    row = {
        "messages": [
            TALK[1],
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "1", "content": "9 h"},
            {"role": "assistant", "content": "It is 9."},
        ],
        "tools": [TOOL],
    }
    assert learned(row, tokenizer) == ['time {"at": 3}<|im_end|>\n', "It is 9.<|im_end|>\n"]
    text = tokenizer.decode(chat_example(row, tokenizer).input_ids)
    assert text.startswith('[{"type": "function", "function": {"name": "time"')


@pytest.mark.parametrize(
    ("fields", "further", "path"),
    [
        ({"content": None, "tool_calls": [CALL]}, {}, "messages[1].tool_calls[0].function"),
        ({"content": "Hi."}, {"tools": [TOOL]}, "tools[0].function"),
    ],
)
def test_what_a_template_leaves_out_is_a_fault(
    tokenizer: PreTrainedTokenizerBase, fields: dict, further: dict, path: str
) -> None:
    tokenizer.chat_template = PLAIN
    row = {"messages": [TALK[1], {"role": "assistant", **fields}], **further}
    with pytest.raises(BadRow, match="leaves it out: time") as fault:
        chat_example(row, tokenizer)
    assert fault.value.path == path


def test_a_tokenizer_may_have_a_template_for_tools(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = {"default": TAGGED, "tool_use": TOOLS}
    assert learned({"messages": TALK}, tokenizer) == ["Hi.<|im_end|>", "Me.<|im_end|>"]
    row = {"messages": TALK, "tools": [TOOL]}
    assert learned(row, tokenizer) == ["Hi.<|im_end|>\n", "Me.<|im_end|>\n"]


def test_supervised_counts_predictions(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = TAGGED
    example = chat_example(ask("Hello?", "Hi."), tokenizer)
    assert example.supervised == len(tokenizer("Hi.<|im_end|>")["input_ids"])
    text = text_example({"text": "Hi."}, tokenizer)
    assert text.supervised == len(text.input_ids) - 1  # nothing predicts the first


def test_text_is_learned_whole_with_one_end(tokenizer: PreTrainedTokenizerBase) -> None:
    example = text_example({"text": "Words."}, tokenizer)
    assert example.labels == example.input_ids
    assert tokenizer.decode(example.input_ids) == "Words.<|im_end|>"
    assert text_example({"text": "Words.<|im_end|>"}, tokenizer) == example
    assert text_example({"text": "a<|im_end|>b"}, tokenizer).input_ids[-1] == tokenizer.eos_token_id
