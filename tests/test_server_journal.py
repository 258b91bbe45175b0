"""What was accepted, and who is next: the queue, the journal, and servers that stop or are killed."""

import io
import time

import numpy as np
import pytest
from PIL import Image
from serving import SLOTS, served

from sdjax.files.checkpoint import read_model
from sdjax.files.pictures import encoded
from sdjax.pipeline.resolve import Facts
from sdjax.server.engine import Engine
from sdjax.server.journal import Journal
from sdjax.server.lanes import Lanes
from sdjax.server.limits import Limits
from sdjax.server.models import Models
from sdjax.server.queue import Queue
from sdjax.server.refusals import Refused
from sdjax.server.work import Form, Job, Result, units_of
from sdjax.settings import SETTINGS, Picture

FEW = {"num_inference_steps": 3}
FORM = Form("webp", 80)


@pytest.fixture(scope="module")
def facts(small):
    return Facts.of(read_model(small))


def gradient() -> Image.Image:
    return Image.linear_gradient("L").resize((64, 64)).convert("RGB")


def job_of(facts, client: str, *pictures: Picture, id: str = "job") -> Job:
    return Job(client, units_of("small", pictures, facts, Limits()), time.time() + 100, FORM, id=id)


@pytest.mark.long
def test_clients_take_turns(facts):
    queue = Queue(10, 64 * 64)
    (first,), (second,) = ([job_of(facts, name, *[Picture("a")] * 3)] for name in "ab")
    queue.add([*first.units, *second.units])
    assert [unit.job.client for unit in queue] == list("ababab")
    assert [unit.job.client for unit in queue.take(3, lambda _: True)] == list("aba")
    third = job_of(facts, "c", Picture("a"))
    queue.add(third.units)
    assert [unit.job.client for unit in queue][:2] == ["b", "c"]  # and not behind all that came before
    with pytest.raises(Refused, match="queue is full") as full:
        queue.check_room(job_of(facts, "d", *[Picture("a")] * 7), 2.0)
    assert full.value.status == 429 and full.value.retry_after == 2
    sent = job_of(facts, "d", *[Picture("a", image=gradient())] * 2)
    queue.check_room(sent, 2.0)
    queue.add(sent.units)
    with pytest.raises(Refused, match="4096 pixels already"):
        queue.check_room(sent, 2.0)


@pytest.mark.long
def test_a_batch_that_has_had_more_time_waits_for_the_others(pipe, facts):
    queue, lanes = Queue(10, 10**6), Lanes(Models({"small": lambda: pipe}), [SLOTS], 100.0)
    jobs = [job_of(facts, "me", Picture("a", width=side, height=side, num_inference_steps=8)) for side in (96, 64)]
    large, small = (job.units[0] for job in jobs)
    queue.add([large, small])
    for chosen in lanes.choose(queue):
        assert not lanes.admit(*chosen)
    next(lane for lane in lanes._open if large in lane.batch.units).spent = 1000.0
    while small in lanes.units:
        ended = list(lanes.advance(lambda fill: None))
    assert [each.unit for each in ended] == [small] and large.done == 0
    while large in lanes.units:
        ended = list(lanes.advance(lambda fill: None))
    assert [each.unit for each in ended] == [large] and large.done == large.nfe


def test_a_journal_gives_back_what_it_was_given(facts, tmp_path):
    image, mask = gradient(), Image.new("L", (64, 64), 255)
    pictures = [
        Picture("ein Würfel", seed=2**64 - 1, guidance_scale=(1.0, 2.0, 3.0), **FEW),
        Picture("a", image=image, mask_image=mask, mask_blur=0.0),
    ]
    journal = Journal(tmp_path / "journal.sqlite")
    job = job_of(facts, "me", *pictures)
    journal.accept(job)
    with pytest.raises(Refused, match="already"):
        journal.accept(job)
    journal.keep("job", 1, Result(b"data", job.form, {"seed": 1}))
    journal.keep("job", 1, Result(b"other", job.form, {"seed": 2}))  # nothing is doubled
    assert journal.result("job", 1) == Result(b"data", job.form, {"seed": 1})
    journal.close()  # a killed process does no more than this either

    again = Journal(tmp_path / "journal.sqlite", seconds=0)
    (kept,) = again.left()
    assert (kept.id, kept.client, kept.model, kept.form) == ("job", "me", "small", FORM)
    assert kept.pictures.keys() == {0}
    for name in SETTINGS:
        assert getattr(kept.pictures[0], name) == getattr(pictures[0], name)
    again.sweep()
    assert again.find("job") is not None  # for it is not done
    again.fail("job", 0, "it is black")
    assert again.find("job")["results"] == {0: "it is black", 1: {"seed": 1}} and not list(again.left())
    again.sweep()
    assert again.find("job") is None and again.result("job", 1) is None
    again.close()


def test_a_full_disk_is_said_and_nothing_is_half_written(facts, tmp_path):
    journal = Journal(tmp_path / "journal.sqlite")
    journal.accept(job_of(facts, "me", Picture("a star", **FEW), id="before"))
    pages = journal._base.execute("PRAGMA page_count").fetchone()[0]
    journal._base.execute(f"PRAGMA max_page_count = {pages + 2}")
    noise = Image.effect_noise((256, 256), 80).convert("RGB")
    with pytest.raises(Refused, match="cannot be written") as full:
        journal.accept(job_of(facts, "me", Picture("a star", image=noise, **FEW), id="large"))
    assert full.value.status == 503 and journal.find("large") is None
    with pytest.raises(Refused, match="cannot be written"):
        journal.keep("before", 0, Result(bytes(10**6), Form(), {}))
    assert journal.result("before", 0) is None and [kept.id for kept in journal.left()] == ["before"]
    journal._base.execute("PRAGMA max_page_count = 100000")
    journal.accept(job_of(facts, "me", Picture("a star", image=noise, **FEW), id="large"))
    assert [kept.id for kept in journal.left()] == ["before", "large"]
    journal.close()


@pytest.mark.long
def test_what_a_killed_server_had_accepted_is_drawn_by_the_next(pipe, facts, tmp_path):
    journal = Journal(tmp_path / "journal.sqlite")
    image = gradient()
    journal.accept(job_of(facts, "me", Picture("a star", image=image, seed=3, **FEW), id="kept"))
    with served(pipe) as running:
        running.engine.journal.close()
        running.engine.journal = journal  # which is closed with the server
        assert running.engine.resume() == 1
        job = running.engine.jobs["kept"]
        result = job.units[0].future.result(60)
        assert result.form == FORM and journal.result("kept", 0) == result
        assert result.settings["seed"] == 3


@pytest.mark.long
def test_a_server_that_stops_leaves_the_rest_to_the_next(pipe, facts, tmp_path):
    """Those who wait are told so, and what was accepted is drawn all the same, as if nothing had been."""
    journal = Journal(tmp_path / "journal.sqlite")
    jobs = [job_of(facts, "me", Picture("a", seed=k, num_inference_steps=100), id=str(k)) for k in range(4)]

    def engine() -> Engine:
        return Engine(Models({"small": lambda: pipe}), [SLOTS], Limits(), journal)

    first = engine()
    for job in jobs:
        first.submit(job)
    while not any(unit.done for unit in first.running):
        time.sleep(0.001)
    first.close(0)
    errors = [job.units[0].future.exception() for job in jobs]
    assert all(isinstance(error, Refused) and error.status in (409, 503) for error in errors)
    with pytest.raises(Refused, match="about to stop"):
        first.submit(job_of(facts, "me", Picture("a"), id="late"))
    second = engine()
    assert second.resume() == 4
    for k, job in enumerate(list(second.jobs.values())):
        image = Image.open(io.BytesIO(job.units[0].future.result(60).data))
        expected = pipe.draw([Picture("a", seed=k, num_inference_steps=100)] * SLOTS).images[0]
        again = Image.open(io.BytesIO(encoded(expected, FORM.kind, {}, FORM.quality)))
        np.testing.assert_array_equal(np.asarray(image), np.asarray(again))
    second.close(0)
    journal.close()
