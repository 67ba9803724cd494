"""The queue of scenes that wait for an answer, and the thread that asks about them."""

import dataclasses
from contextlib import contextmanager

from goals.asking import Costs
from goals.background import FIRST_BATCH, LARGEST_BATCH, Background

PATIENCE = 30  # seconds; nothing here takes long unless it is broken


def collect_batches(batches, costs=Costs(), fails=()):  # noqa: B008, Costs is frozen
    """Return what a Background is given: it notes batches, answers each scene by its own text."""

    @contextmanager
    def open_asker():
        def answer(scenes):
            batches.append(scenes)
            if set(scenes) & set(fails):
                raise ValueError("no such scene")
            return {scene: scene.decode() for scene in scenes}, dataclasses.replace(
                costs, queries=len(scenes)
            )

        yield answer

    return open_asker


def test_most_visited_scenes_come_first_and_a_full_queue_drops_the_least_visited():
    batches = []
    background = Background(collect_batches(batches), capacity=20)
    names = [b"%02d" % number for number in range(25)]
    assert background.add({name: int(name) for name in names[:20]}) == 0
    assert background.add({b"00": 50, b"03": 1}) == 0  # visits add up
    assert background.add({name: int(name) for name in names[20:]}) == 5 and len(background) == 20
    assert background.visits().keys() == {b"00", *names[6:]}
    background.start(budget=100)
    assert background.wait(PATIENCE)
    assert [len(batch) for batch in batches] == [FIRST_BATCH, 12]
    assert [name for batch in batches for name in batch] == [b"00", *reversed(names[6:])]
    answers, costs = background.take()
    assert answers == {name: name.decode() for name in [b"00", *names[6:]]} and costs.queries == 20
    assert background.take() == ({}, Costs()) and not background.visits()
    background.stop()
    background.join()
    assert not background.is_alive


def test_budget_is_kept_and_what_it_does_not_allow_stays_in_the_queue():
    batches = []
    background = Background(collect_batches(batches))
    background.add({b"%02d" % number: 1 for number in range(30)})
    background.start(budget=11)
    assert background.wait(PATIENCE) and len(background.take()[0]) == 11 and len(background) == 19
    assert [len(batch) for batch in batches] == [FIRST_BATCH, 11 - FIRST_BATCH]
    background.stop()


def test_batches_grow_while_answers_are_quick():
    batches = []
    background = Background(collect_batches(batches))
    background.add({b"%04d" % number: 1 for number in range(1000)})
    background.start(budget=float("inf"))
    assert background.wait(PATIENCE)
    assert [len(batch) for batch in batches] == [
        FIRST_BATCH,
        *[LARGEST_BATCH] * 3,
        1000 - FIRST_BATCH - 3 * LARGEST_BATCH,
    ]
    background.stop()


def test_a_failure_ends_the_thread_in_one_line_and_loses_nothing():
    background = Background(collect_batches([], fails=[b"20"]))
    visits = {b"%02d" % number: 30 - number for number in range(30)}
    background.add(visits)
    background.start(budget=100)
    assert background.wait(PATIENCE)
    background.join()
    assert str(background.failure) == "asking in the background ended (no such scene)"
    assert isinstance(background.failure.__cause__, ValueError) and not background.is_alive
    answers, _ = background.take()
    assert len(answers) == FIRST_BATCH
    assert background.visits() == {
        scene: count for scene, count in visits.items() if scene not in answers
    }
