"""From text to what the text encoder reads."""

from sdjax.prompts.chunks import Tokens, Words, one_chunk, padded, tiled, weighted_chunks
from sdjax.prompts.composed import Part, bucket, parts_of
from sdjax.prompts.editing import schedule, texts_of_rows
from sdjax.prompts.emphasis import BREAK, parse_emphasis
from sdjax.prompts.rows import Reader, tokens_by_row
from sdjax.prompts.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "BREAK",
    "Part",
    "Reader",
    "Tokenizer",
    "Tokens",
    "Words",
    "bucket",
    "load_tokenizer",
    "one_chunk",
    "padded",
    "parse_emphasis",
    "parts_of",
    "schedule",
    "texts_of_rows",
    "tiled",
    "tokens_by_row",
    "weighted_chunks",
]
