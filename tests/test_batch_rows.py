"""Rows of files: what they say, which of them are refused, and which are drawn together."""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from batch_runs import SLOTS, items, placed, write
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from sdjax.batch.drawing import draw
from sdjax.batch.formats import kind_of, read_rows
from sdjax.batch.groups import Placed, batches_of
from sdjax.batch.hosts import Hosts
from sdjax.batch.identity import fingerprint
from sdjax.batch.output import Output
from sdjax.batch.rows import Item, Naming, Problem, complain, items_of
from sdjax.errors import InputError
from sdjax.files.layout import embedded_models
from sdjax.files.pictures import encoded, read_settings
from sdjax.files.plans import read_plan
from sdjax.pipeline.order import GroupKey


def read(path: Path, **options) -> tuple[list[Item], list[Problem]]:
    return items_of(read_rows(path, kind_of(path, None)), {}, Naming(**options), path.parent)


# --- rows


def test_a_tuned_plan_is_the_sampler_of_a_row(tmp_path):
    plan = sorted((embedded_models()["shapes"] / "plans").glob("*.json"))[0]
    shutil.copy(plan, tmp_path / "plan.json")
    write(tmp_path / "rows.csv", "prompt,sampler\na,plan.json\nb,euler\nc,rows.csv.json\n")
    found, problems = read(tmp_path / "rows.csv")
    assert [item.settings["sampler"] for item in found] == [f"plan.json@{read_plan(plan).hash}", "euler"]
    assert "rows.csv.json cannot be read" in complain(problems)


def test_every_format_says_the_same(tmp_path):
    rows = [
        {"prompt": 'a "red", round\nheart', "steps": 12, "seed": 2**64 - 1, "guidance_scale": 2.5},
        {"prompt": "ein blaues Herz mit Ü", "sampler": "euler", "num_images": 2, "name": "blue"},
        {"prompt": "a star", "width": 32, "cfg_plus_plus": True, "sampler": "ddim"},
    ]
    columns = sorted({name for row in rows for name in row})
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    write(tmp_path / "rows.jsonl", "\n".join(map(json.dumps, rows)) + "\n")
    types = {"seed": pyarrow.uint64()}
    cells = {name: pyarrow.array([row.get(name) for row in rows], types.get(name)) for name in columns}
    table = pyarrow.table(cells)
    parquet.write_table(table, tmp_path / "rows.parquet")
    as_csv, as_json, as_parquet = (read(tmp_path / f"rows.{kind}") for kind in ("csv", "jsonl", "parquet"))
    assert as_csv == as_json == as_parquet
    found, problems = as_csv
    assert not problems
    assert [item.name for item in found] == ["00000000", "blue-1", "blue-2", "00000003"]
    assert [item.settings["seed"] for item in found] == [2**64 - 1, 1, 2, 3]
    assert found[0].settings["prompt"] == rows[0]["prompt"] and found[0].settings["num_inference_steps"] == 12


def test_lines_are_prompts_and_blank_ones_are_none_but_are_counted(tmp_path):
    found, problems = read(write(tmp_path / "rows.txt", "\na heart\r\n  \n a star \n\n\n"))
    assert [(item.row, item.index, item.settings["prompt"]) for item in found] == [
        (2, 0, "a heart"),
        (4, 1, " a star "),
    ]
    assert not problems
    for name, content in (("rows.jsonl", '{"prompt": "a"}\n\n{"prompt": 7}'), ("rows.csv", "prompt,steps\n\na,x\n")):
        _, problems = read(write(tmp_path / name, content))
        assert [problem.row for problem in problems] == [3 if name == "rows.jsonl" else 2]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.txt", b"a\n\n\xff", "row 3: prompt .* is not valid Unicode"),
        ("rows.txt", b"a\n\xff\xfe\nb", "row 2: prompt .* is not valid Unicode"),
        ("rows.jsonl", '{"prompt": "a", "sed": 1}', r"row 1: unknown column 'sed', did you mean 'seed'\?"),
        (
            "rows.jsonl",
            '{"prompt": "a"}\n{"prompt": "b", "steps": "many"}',
            "row 2: num_inference_steps must be a whole",
        ),
        (
            "rows.jsonl",
            '{"prompt": "a", "steps": 2.5}',
            "row 1: num_inference_steps must be a whole number from 1 to 10000, not 2",
        ),
        (
            "rows.jsonl",
            '{"prompt": "a", "steps": true}',
            "row 1: num_inference_steps must be a whole number from 1 to 10000, not T",
        ),
        ("rows.jsonl", '{"prompt": "a", "guidance_scale": NaN}', "row 1: guidance_scale must be a finite number"),
        ("rows.jsonl", '{"prompt": "a", "seed": -1}', "row 1: seed must be a whole number from 0"),
        ("rows.jsonl", '{"prompt": "a", "num_images": 0}', "row 1: num_images must be"),
        ("rows.jsonl", '{"prompt": "a", "sampler": "oiler"}', "row 1: unknown sampler"),
        ("rows.jsonl", '{"prompt": 7}', "row 1: prompt must be a text, not 7"),
        ("rows.jsonl", '{"steps": 7}', "row 1: it has no prompt"),
        ("rows.jsonl", "[1]\n{", "row 1: it is no JSON object; row 2: it is no JSON"),
        ("rows.jsonl", "{}", "row 1: it is empty"),
        ("rows.jsonl", '{"prompt": "a", "image": "nowhere.png"}', "row 1: image: there is no file .*nowhere.png"),
        ("rows.jsonl", '{"prompt": "a", "image": "rows.jsonl"}', "row 1: image: .* is no picture"),
        (
            "rows.jsonl",
            '{"prompt": "a", "name": "A"}\n{"prompt": "a", "name": "a"}',
            "row 2: the name 'a' is that of row 1",
        ),
        ("rows.jsonl", '{"prompt": "a", "name": "../a"}', "row 1: '../a' is no name for a file"),
        ("rows.jsonl", '{"prompt": "a", "name": "/etc/a"}', "row 1: '/etc/a' is no name for a file"),
        ("rows.csv", "prompt,steps\na,1\nb\n,\n", "row 2: it has 1 cells for 2 columns; row 3: it is empty"),
        (
            "rows.csv",
            "prompt,steps\na,x\n",
            "row 1: num_inference_steps must be a whole number from 1 to 10000, not 'x'",
        ),
    ],
)
def test_bad_rows_are_named(name, content, said, tmp_path):
    _, problems = read(write(tmp_path / name, content))
    assert re.match(said, complain(problems))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.csv", "prompt,prompt\na,b\n", "each once"),
        ("rows.csv", 'prompt\n"a', "is no CSV"),
        ("rows.xls", "a", "does not end in"),
        ("rows.parquet", "a", "cannot be read as Parquet"),
    ],
)
def test_files_of_another_kind_are_refused(name, content, said, tmp_path):
    with pytest.raises(InputError, match=said):
        read(write(tmp_path / name, content))


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_a_name_that_is_taken_stays_in_its_folder(tmp_path_factory, names):
    found, problems = items_of([{"prompt": "a", "name": name} for name in names], {}, Naming(), Path())
    assert len(found) + len(problems) == len(names)
    output = Output(Path("/out"))
    paths = [os.path.normpath(output.path_of(item)) for item in found]
    assert all(Path(path).parent == Path("/out/00000") for path in paths)
    assert len({path.casefold() for path in paths}) == len(paths)


@pytest.mark.parametrize("template", ["{index.__class__}", "{other}", "{index", "{0}"])
def test_templates_with_other_fields_are_refused(template):
    with pytest.raises(InputError, match="the name"):
        Naming(template)


def test_any_change_of_a_row_or_of_its_image_is_another_run(tmp_path):
    rows = [{"prompt": "a", "seed": 1}, {"prompt": "a", "seed": 2}]
    starts = [{"prompt": "a", "image": str(tmp_path / name)} for name in ("one.png", "other.png")]
    for name in ("one.png", "other.png"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)

    def prints(*chosen: list[dict]) -> list[str]:
        return [fingerprint(items(*each), Path(), lambda *_: None) for each in chosen]

    before = prints(rows, rows[::-1], rows[:1], [*rows, rows[0]], starts[:1], starts[1:])
    assert len(set(before)) == len(before) and prints(starts[:1]) == before[4:5]
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "one.png")
    assert prints(starts[:1]) != before[4:5] and prints(starts[1:]) == before[5:]


# --- groups


def test_rows_of_one_size_share_a_batch_where_it_makes_no_difference(pipe):
    first, *others = [
        each.key
        for each in placed(
            pipe,
            {"prompt": "a"},
            {"prompt": "b", "sampler": "heun", "steps": 9, "guidance_scale": 3.0, "seed": 5},
            {"prompt": "c", "sampler": "euler_ancestral", "spacing": "karras", "negative_prompt": "d"},
            {"prompt": "a", "guidance_scale": 1},  # from here on each needs shapes of its own
            {"prompt": "a", "guidance_interval": [0.5, 1]},
            {"prompt": "a " * 100},
            {"prompt": "[a:b:1]"},
            {"prompt": "a", "rng": "torch"},
            {"prompt": "a", "width": 32},
        )
    ]
    assert others[:2] == [first, first]
    assert len({first, *others[2:]}) == 7


def test_what_the_model_cannot_draw_is_a_problem(pipe):
    (size,), (skip,) = placed(pipe, {"prompt": "a", "width": 33}), placed(pipe, {"prompt": "a", "clip_skip": 99})
    assert isinstance(size, Problem) and "multiple of" in size.reason
    assert isinstance(skip, Problem) and "clip_skip" in skip.reason


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), max_size=30), st.integers(1, 7))
def test_batches_hold_every_picture_once_and_full(given_groups, slots):
    group = GroupKey(8, 8, 128, 1, 1, 0, (True,), True, (), False, (), "jax", (), (), None, False, None)
    ordered = [
        Placed(group._replace(width=8 * k), nfe, Item(i, i + 1, str(i), {}, {}))
        for i, (k, nfe) in enumerate(given_groups)
    ]
    batches = list(batches_of(ordered, slots))
    assert sorted(item.index for batch in batches for item in batch.items) == list(range(len(ordered)))
    for group in {batch.key for batch in batches}:
        sizes = [len(batch.items) for batch in batches if batch.key == group]
        assert all(size == slots for size in sizes[:-1])
        evaluations = [nfe for batch in batches if batch.key == group for nfe in batch.nfe]
        assert evaluations == sorted(evaluations, reverse=True)  # the one that is not full is the shortest


@given(st.sets(st.integers(0, 60), max_size=40), st.integers(1, 5), st.integers(1, 9))
def test_processes_share_all_and_nothing_twice(indices, count, unit):
    group = GroupKey(8, 8, 128, 1, 1, 0, (True,), True, (), False, (), "jax", (), (), None, False, None)
    all_ = [Placed(group, 1, Item(i, i + 1, str(i), {}, {})) for i in indices]
    shares = [[each.item.index for each in Hosts(k, count).share(all_, unit)] for k in range(count)]
    assert sorted(index for share in shares for index in share) == sorted(indices)
    owners = [{i // unit for i in share} for share in shares]
    assert sum(map(len, owners)) == len(set().union(*owners))


def test_a_picture_is_the_same_bits_in_any_company_and_slot(pipe):
    one, other, third = (
        item.picture()
        for item in items(
            {"prompt": "a red heart", "steps": 3},
            {"prompt": "a star, (big:1.3)", "steps": 2, "sampler": "euler_ancestral", "guidance_scale": 2.0},
            {"prompt": "a ring", "steps": 4, "sampler": "heun", "negative_prompt": "blue"},
        )
    )
    drawn = [draw(pipe, pictures, SLOTS) for pictures in ([one], [one, other], [third, one])]
    pixels = [np.asarray(image) for image, _ in (drawn[0][0], drawn[1][0], drawn[2][1])]
    assert (pixels[0] == pixels[1]).all() and (pixels[0] == pixels[2]).all()


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_every_kind_of_picture_tells_how_it_was_made(kind, tmp_path):
    how = {"prompt": "Größe 大\n<b>", "seed": 2**64 - 1, "steps": 3}
    path = write(tmp_path / f"picture.{kind}", encoded(Image.new("RGB", (8, 8), "red"), kind, how))
    assert read_settings(path) == how
    with Image.open(path) as image:
        assert image.format == kind.upper() and np.abs(np.asarray(image, int) - (255, 0, 0)).max() < 8
