"""Prompts that change while a picture is drawn, as A1111's web UI writes them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Union

from sdjax.errors import InputError
from sdjax.limits import NESTING

# Text, in which a backslash takes what follows literally, or one character that has a meaning.
TOKENS = re.compile(r"(?:[^\\\[\]():|]|\\.)+|[\\\[\]():|]")
NUMBER = re.compile(r"\s*([+-]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)\s*")


class Steps(NamedTuple):
    """The steps of a pass; in a second pass, also those of the first."""

    steps: int
    first_pass: int = 0


@dataclass
class Edit:
    """`[before:after:when]`."""

    before: "list[Node]"
    after: "list[Node]"
    when: str

    def last_step(self, counted: "Steps") -> int:
        """The last step with `before`; `when` is a share of the steps where it has a point, else a step.

        In a second pass both go on counting: shares from 1.0, steps from those of the first pass.
        """
        if "." in self.when:
            last = (float(self.when) - (counted.first_pass > 0)) * counted.steps
        else:
            last = float(self.when) - counted.first_pass
        return int(max(min(last, counted.steps), 0))

    def at(self, step: int, counted: "Steps") -> "list[Node]":
        """What it reads at a step, counted from 1."""
        return self.before if step <= self.last_step(counted) else self.after


@dataclass
class Alternation:
    """`[one|other]`, in turn."""

    options: "list[list[Node]]"

    def at(self, step: int, counted: "Steps") -> "list[Node]":
        """What it reads at a step, counted from 1."""
        return self.options[(step - 1) % len(self.options)]


Node = Union[str, Edit, Alternation]  # noqa: UP007 (the classes refer to it)


@dataclass
class _Bracket:
    """A bracket that is still open, and what was read in it, cut at its separators."""

    opening: str
    parts: list[list[Node]] = field(default_factory=lambda: [[]])
    separators: list[str] = field(default_factory=list)

    def literal(self) -> list[Node]:
        joined: list[Node] = [self.opening, *self.parts[0]]
        for separator, part in zip(self.separators, self.parts[1:]):
            joined += [separator, *part]
        return joined

    def may_go_on(self) -> bool:
        """Whether the last separator fits to those before it, which have been looked at."""
        first, last, count = self.separators[0], self.separators[-1], len(self.separators)
        if self.opening == "(":
            return count == 1 and last == ":"
        return last == first and (first == "|" or count <= 2)

    def closed(self, closing: str) -> list[Node] | None:
        """What the bracket says, or None if it says nothing. Emphasis stays as it is written."""
        if self.opening + closing not in ("()", "[]"):
            return None
        if not self.separators or self.opening == "(":
            return [*self.literal(), closing]
        if self.separators[0] == "|":
            return [Alternation(self.parts)]
        *texts, when = self.parts
        number = NUMBER.fullmatch("".join(node if isinstance(node, str) else ":" for node in when))
        return [Edit(texts[0] if len(texts) == 2 else [], texts[-1], number[1])] if number else None


def schedule(prompt: str, steps: int, first_pass: int = 0) -> list[tuple[int, str]]:
    """The texts that a prompt stands for, each with the last step, counted from 1, at which it is read.

    `[from:to:when]` changes after step `when`, or after that share of the steps where `when` has a point; `[to:when]`
    and `[from::when]` add and take away; `[one|other]` changes at every step. They nest. Brackets that say none of
    this are left for `parse_emphasis`; a prompt with a `|` outside of square brackets is left as a whole.

    first_pass: the steps of the first pass, for the schedule of a second one.
    """
    counted = Steps(steps, first_pass)
    nodes = _parse(prompt)
    if nodes is None:
        return [(steps, prompt)]
    ends = {steps}
    for node in _inside(nodes):
        ends |= set(range(1, steps + 1)) if isinstance(node, Alternation) else {node.last_step(counted)}
    return [(end, _read(nodes, end, counted)) for end in sorted(ends) if end > 0]


def texts_of_rows(prompt: str, steps: int, rows: int, per_step: int = 1, first_pass: int = 0) -> list[str]:
    """The text that is read at each of `rows` evaluations of the network, as A1111 counts.

    It counts evaluations, and those from 0: a text with last step 3 is read at four of them. For samplers that it knows
    to ask the network twice a step (`per_step`) it takes twice the steps. first_pass: of a second pass, the steps of
    the first.
    """
    texts = schedule(prompt, steps * per_step, first_pass * per_step)
    return [next((text for end, text in texts if row <= end), texts[-1][1]) for row in range(rows)]


def _parse(prompt: str) -> list[Node] | None:
    """The nodes of a prompt, or None where the web UI's grammar does not allow it: then it is read as it stands."""
    top: list[Node] = []
    brackets: list[_Bracket] = []
    for token in TOKENS.findall(prompt):
        into = brackets[-1].parts[-1] if brackets else top
        fits = True
        if token == "\\":  # with nothing after it
            return None
        if token in "([":
            brackets.append(_Bracket(token))
            if len(brackets) > NESTING:
                raise InputError(f"more than {NESTING} brackets of the prompt are open at once: close some")
        elif token in ":|" and brackets:
            brackets[-1].separators.append(token)
            brackets[-1].parts.append([])
            fits = brackets[-1].may_go_on()
            token = ""
        elif token in ")]" and brackets:
            said = brackets[-1].closed(token)
            fits = said is not None
            if said is not None:
                brackets.pop()
                (brackets[-1].parts[-1] if brackets else top).extend(said)
        else:
            into.append(token)
        if not fits:  # what is inside of a bracket has to be complete: none of those that are open counts
            top += [node for bracket in brackets for node in bracket.literal()] + [token]
            brackets = []
    top += [node for bracket in brackets for node in bracket.literal()]
    return None if "|" in top else top


def _inside(nodes: list[Node]) -> Iterator[Edit | Alternation]:
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if isinstance(node, Edit):
            yield node
            pending += node.before + node.after
        elif isinstance(node, Alternation):
            yield node
            pending += [inner for option in node.options for inner in option]


def _read(nodes: list[Node], step: int, counted: Steps) -> str:
    pending, text = nodes[::-1], []
    while pending:
        node = pending.pop()
        if isinstance(node, str):
            text.append(node)
        else:
            pending += node.at(step, counted)[::-1]
    return "".join(text)
