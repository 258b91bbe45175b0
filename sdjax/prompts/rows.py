"""What the text encoder reads of a prompt at each row of a plan."""

from sdjax.prompts.chunks import Tokens, Words, one_chunk, padded, weighted_chunks
from sdjax.prompts.editing import texts_of_rows
from sdjax.prompts.tokenizer import Tokenizer


def tokens_by_row(
    tokenizer: Tokenizer,
    words: Words,
    prompt: str,
    is_plain: bool,
    steps: int,
    rows: int,
    per_step: int,
    first_pass: int,
) -> list[Tokens]:
    """The tokens of a prompt at each of `rows` rows; equal texts are one object, and all have one number of chunks.

    is_plain: without A1111's syntax. steps: of the sampler, which changes of the prompt count. per_step: rows a step.
    first_pass: of a second pass, the steps of the first, else 0.
    """
    if is_plain:
        return [one_chunk(tokenizer, prompt, words)] * rows
    texts = texts_of_rows(prompt, steps, rows, per_step, first_pass)
    tokens = {text: weighted_chunks(tokenizer, text, words) for text in dict.fromkeys(texts)}
    chunks = max(len(each.ids) for each in tokens.values())
    filled = {text: padded(tokenizer, each, chunks) for text, each in tokens.items()}
    return [filled[text] for text in texts]
