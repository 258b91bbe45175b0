"""`sdjax generate -n`: any number of pictures by the programs of one batch size."""

import numpy as np
import pytest

from sdjax.cli.by_batches import at_once, draw_by_batches
from sdjax.pipeline.request import pictures_of


def drawn(pipe, prompts, size=None, *, seeds):
    """Pictures by their numbers, those of each batch as they came."""
    found, batches, said = {}, [], []
    pictures = pictures_of(prompts, {"num_inference_steps": 2}, seed=seeds)

    def keep(numbers, images, settings):
        batches.append(list(numbers))
        assert len(numbers) == len(images) == len(settings)
        found.update(zip(numbers, map(np.asarray, images)))
        assert [each["seed"] for each in settings] == [seeds[number] for number in numbers]

    draw_by_batches(pipe, pictures, size, lambda _: None, lambda *progress: said.append(progress), keep)
    return found, batches, said


def test_another_number_of_pictures_compiles_nothing_and_changes_no_bit(pipe, compilations):
    first, _, _ = drawn(pipe, ["a red ring"], seeds=[5])
    compilations.clear()
    many, batches, said = drawn(pipe, ["a blue star", "", *["a red ring"] * 5], seeds=[7, 8, 1, 2, 5, 2**64 - 1, 3])
    assert not compilations
    assert batches == [[k] for k in range(7)]
    assert np.array_equal(many[4], first[0]) and not np.array_equal(many[3], first[0])
    done, totals = zip(*(progress[1:3] for progress in said if progress[0] == "denoise"))
    assert list(done) == sorted(done) and {*totals} == {done[-1]}


@pytest.mark.long
def test_a_batch_that_is_not_full_and_what_is_beside_a_picture_change_no_bit(pipe, compilations):
    long = " ".join(["a ring"] * 50)  # two chunks of tokens: it does not share a batch with short ones
    prompts = ["a red ring", long, "a blue star", "a cross"]
    found, batches, _ = drawn(pipe, prompts, 2, seeds=[1, 2, 3, 4])
    assert batches == [[0, 2], [3], [1]]
    compilations.clear()
    others, batches, _ = drawn(pipe, [*prompts[2:], *prompts[:2]], 2, seeds=[3, 4, 1, 2])
    assert not compilations
    assert batches == [[0, 1], [2], [3]]
    assert all(np.array_equal(found[k], others[(k + 2) % 4]) for k in range(4))


@pytest.mark.parametrize(
    ("free", "pixels", "itemsize", "count"),
    [
        (0, 512 * 512, 2, 1),  # a device that does not say what it has
        (6 * 10**9, 512 * 512, 2, 4),
        (4 * 10**9, 512 * 512, 2, 3),
        (10 * 10**9, 1024 * 1024, 2, 1),
        (130 * 10**9, 1024 * 1024, 2, 4),
        (130 * 10**9, 4096 * 4096, 4, 1),
    ],
)
def test_memory_says_how_many_are_drawn_at_once(free, pixels, itemsize, count):
    assert at_once(free, pixels, itemsize) == count
