"""What a model's chat template puts before the words of a user."""

from sinks.errors import UserError
from sinks.interop.load import Pretrained
from sinks.interop.weight_files import one_line, reading

WORDS = "sinks-words"  # in the place of a user's; rendered, and then split off


def chat_start(pretrained: Pretrained) -> list[int]:
    """The ids before the first word of the first message: special tokens, roles, and a system message if it has one.

    Args:
        pretrained: whose folder holds a chat template, as chat_template.jinja or in tokenizer_config.json.

    Raises:
        UserError: if it has none, the template cannot be rendered, or it puts nothing before the words.
    """
    from transformers import AutoTokenizer

    with reading(f"the tokenizer of {pretrained.name}"):
        tokenizer = AutoTokenizer.from_pretrained(pretrained.folder)
    if not tokenizer.chat_template:
        raise UserError(f"bos is 'chat', but {pretrained.name} has no chat template: give auto, none or an id")
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": WORDS}], tokenize=False)
    except Exception as error:  # a template can raise whatever it likes
        raise UserError(
            f"the chat template of {pretrained.name} cannot be rendered ({one_line(error)}): give --bos none"
        ) from None
    before, found, _ = text.partition(WORDS)
    ids = tokenizer(before, add_special_tokens=False).input_ids
    if not found or not ids:
        raise UserError(
            f"the chat template of {pretrained.name} puts nothing before a message's words: give --bos none"
        )
    return list(ids)
