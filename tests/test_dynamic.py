"""Prompts with choices: what may come out, how often, by which seed, and what is refused."""

import re
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdjax.batch.rows import Naming, items_of
from sdjax.cli import main
from sdjax.errors import InputError
from sdjax.prompts.dynamic import Wildcards, resolved

NONE = Wildcards()


@pytest.fixture
def wildcards(tmp_path) -> Wildcards:
    for name, text in {
        "colour": "# of the rainbow\nred\n\n3::blue\n{dark|light} green\n",
        "animals/cat": "cat",
        "animals/dog": "dog",
        "loop": "on __loop__",
        "empty": "# nothing\n",
        "long": "\n".join(f"{k} " + "x" * 2000 for k in range(100)),
    }.items():
        (tmp_path / name).with_suffix(".txt").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path.parent / "outside.txt").write_text("a secret")
    return Wildcards(tmp_path)


@pytest.mark.parametrize(
    ("template", "prompts"),
    [
        ("a {red|blue} star", {"a red star", "a blue star"}),
        ("{a|{b|c}}{|!}", {a + b for a in "abc" for b in ("", "!")}),
        ("{2$$a|b|c}", {f"{a}, {b}" for a in "abc" for b in "abc" if a != b}),
        ("{1-2$$ and $$a|b}", {"a", "b", "a and b", "b and a"}),
        ("{-1$$a|b}", {"", "a", "b"}),
        ("{2-$$ $$a|b}", {"a b", "b a"}),
        ("{0::a|1.5::b}", {"b"}),
        ("__colour__", {"red", "blue", "dark green", "light green"}),
        ("__animals/*__", {"cat", "dog"}),
        ("{2$$__animals/*__}", {"cat, dog", "dog, cat"}),
        (r"\{a|b\} {x\|y|x\|y}", {"{a|b} x|y"}),
        ("[a|b] (c:1.2) <lora:d_e:0.5> | f", {"[a|b] (c:1.2) <lora:d_e:0.5> | f"}),
    ],
)
def test_all_that_may_come_out_does_and_nothing_else(template, prompts, wildcards):
    assert {resolved(template, seed, wildcards) for seed in range(200)} == prompts


def test_weights_are_shares():
    found = Counter(resolved("{3::a|b}", seed, NONE) for seed in range(2000))
    assert 0.71 < found["a"] / 2000 < 0.79


def test_a_seed_chooses_the_same_for_ever_and_negative_prompts_choose_by_themselves():
    assert [resolved("{a|b|c|d|e|f|g|h}", seed, NONE) for seed in range(8)] == list("eghaehff")
    pairs = {(resolved("{a|b}", seed, NONE), resolved("{a|b}", seed, NONE, "negative_prompt")) for seed in range(50)}
    assert len(pairs) == 4


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("a {b", "opens a brace that it does not close"),
        ("a b}", "closes a brace that it did not open"),
        ("__color__", "no wildcard __color__ in .*, did you mean 'colour'"),
        ("__../outside__", "there is no wildcard"),
        ("__/etc/hosts__", "there is no wildcard"),
        ("__empty__", "has no lines"),
        ("__loop__", "lead to each other"),
        ("{" * 30 + "}" * 30, "more than 20 choices inside each other"),
        ("{3-2$$a|b}", "takes 3 to 2 options"),
        ("{9999$$a|b}", "from 0 to 100 can be"),
        ("{100$$, $$__long__}", "longer than 100,000 characters"),
    ],
)
def test_what_cannot_be_is_refused(template, says, wildcards):
    with pytest.raises(InputError, match=says):
        resolved(template, 0, wildcards)


@given(st.text(st.sampled_from("{}|$:_a1 .\\-"), max_size=60), st.integers(0, 2**64 - 1))
@settings(max_examples=300, deadline=None)
def test_any_text_gives_one_prompt_or_is_refused(template, seed):
    with suppress(InputError):
        assert resolved(template, seed, NONE) == resolved(template, seed, NONE)


@pytest.mark.parametrize("unit", ["{", "__", "_", "{1$$", "\\", "{a|", "__a", "9", "{1-100$$a|"])
def test_long_texts_take_no_time(unit):
    began = time.process_time()
    for text in (unit * (100_000 // len(unit)), "{1-100$$" + unit * 40_000 + "}"):
        with suppress(InputError):
            resolved(text, 1, NONE)
    assert time.process_time() - began < 5


def test_rows_choose_by_the_seeds_of_their_pictures(wildcards):
    rows = [{"prompt": "a __colour__ {star|ring}", "num_images": 20, "negative_prompt": "{a|b}"}, {"prompt": "plain"}]
    items, problems = items_of(rows, {}, Naming(), Path(), wildcards=wildcards)
    assert not problems
    for item in items[:20]:
        assert item.settings["prompt"] == resolved(rows[0]["prompt"], item.settings["seed"], wildcards)
        assert item.templates == {"prompt_template": rows[0]["prompt"], "negative_prompt_template": "{a|b}"}
    assert len({item.settings["prompt"] for item in items[:20]}) > 3
    assert items[20].settings["prompt"] == "plain" and not items[20].templates
    items, problems = items_of([{"prompt": "{a"}, {"prompt": "{a|b}"}], {}, Naming(), Path(), wildcards=wildcards)
    assert [problem.row for problem in problems] == [1] and len(items) == 1
    assert items_of([{"prompt": "{a"}], {}, Naming(), Path())[0][0].settings["prompt"] == "{a"


def test_generate_refuses_a_template_before_anything_is_loaded(capsys):
    assert main(["generate", "a {star", "--dynamic", "--model", "nowhere"]) == 1
    assert re.fullmatch("sdjax: .* does not close.*\n", capsys.readouterr().err)
