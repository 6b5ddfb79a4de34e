"""Functions in lockstep: answered together, in order, and all ended when one fails."""

import threading

import pytest

from attacker.lockstep import run_in_lockstep


def adding(start: int, rounds: int):
    """Return a function that asks ``rounds`` times and adds up the answers."""

    def add(ask) -> int:
        total = start
        for _ in range(rounds):
            total += ask(total)
        return total

    return add


def test_questions_are_answered_together_and_in_order() -> None:
    asked: list[list[int]] = []

    def answer(questions):
        asked.append(list(questions.values()))
        return {index: 10 * question for index, question in questions.items()}

    assert run_in_lockstep([adding(1, 2), adding(2, 0), adding(3, 3)], answer) == [121, 2, 3993]
    assert asked == [[1, 3], [11, 33], [363]]


def test_a_question_stays_open_until_it_is_answered() -> None:
    asked: list[dict[int, int]] = []

    def answer(questions):
        asked.append(dict(questions))
        smallest = min(questions, key=questions.__getitem__)
        return {smallest: 1}

    assert run_in_lockstep([adding(5, 1), adding(0, 2)], answer) == [6, 2]
    assert asked == [{0: 5, 1: 0}, {0: 5, 1: 1}, {0: 5}]


def test_nothing_to_run() -> None:
    assert run_in_lockstep([], lambda questions: {}) == []


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_an_error_of_one_ends_all(error: BaseException) -> None:
    before, ended = threading.active_count(), []

    def breaks(ask) -> None:
        ask(0)
        raise error

    def goes_on(ask) -> None:
        try:
            while True:
                ask(0)
        finally:
            ended.append(True)

    with pytest.raises(type(error)):
        run_in_lockstep([goes_on, breaks, goes_on], lambda questions: questions)
    assert ended == [True, True]
    assert threading.active_count() == before


def test_an_error_of_the_answer_ends_all() -> None:
    before = threading.active_count()

    def answer(questions):
        raise RuntimeError("no answer")

    with pytest.raises(RuntimeError, match="no answer"):
        run_in_lockstep([adding(0, 1), adding(0, 1)], answer)
    assert threading.active_count() == before
