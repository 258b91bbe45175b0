"""How much a picture, a row or a file may ask for: the one table of limits.

They are far above what anybody needs, and low enough that nothing is built, compiled or filled up to them. What is
above is refused in one line, before any work.
"""

# Of prompts and other texts.
TEXT = 100_000  # characters
NESTING = 500  # brackets that are open at once
