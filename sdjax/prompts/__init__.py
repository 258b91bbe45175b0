"""From text to what the text encoder reads."""

from sdjax.prompts.chunks import Tokens, Words, one_chunk, stack, weighted_chunks
from sdjax.prompts.editing import schedule, texts_of_rows
from sdjax.prompts.embeddings import read_embedding
from sdjax.prompts.emphasis import BREAK, parse_emphasis
from sdjax.prompts.tokenizer import load_tokenizer, tokenize

__all__ = [
    "BREAK",
    "Tokens",
    "Words",
    "load_tokenizer",
    "one_chunk",
    "parse_emphasis",
    "read_embedding",
    "schedule",
    "stack",
    "texts_of_rows",
    "tokenize",
    "weighted_chunks",
]
