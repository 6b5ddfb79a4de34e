"""Functions that go from question to question together, so that questions of one kind can be answered at once.

    each function runs until it asks -> some of what is asked is answered -> those who asked that run on

Only one function runs at a time, in the order in which they are given: threads serve as coroutines here, so that a
function needs to know nothing of it, and there is nothing to lock.
"""

import contextvars
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeAlias, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")
Result = TypeVar("Result")

Ask: TypeAlias = Callable[[Question], Answer]


def run_in_lockstep(
    functions: Sequence[Callable[[Ask[Question, Answer]], Result]],
    answer: Callable[[Mapping[int, Question]], Mapping[int, Answer]],
) -> list[Result]:
    """Run functions in lockstep and return what they return, in their order.

    Args:
        functions: Each is called with ``ask``, in a thread and a copy of this context of its own.
        answer: Answers at least one of the open questions, by the index of who asked; the others stay open. Called in
            this thread whenever all functions that have not ended wait.

    Raises:
        BaseException: What a function or ``answer`` raises first; the other functions end at their next question.
    """
    strands = [_Strand(function) for function in functions]
    may_go = list(range(len(strands)))
    try:
        while may_go:
            for index in may_go:
                strands[index].go_on()
            asked = {index: strand.question for index, strand in enumerate(strands) if not strand.has_ended}
            answers = answer(asked) if asked else {}
            for index, own in answers.items():
                strands[index].answer = own
            may_go = sorted(answers)
        return [strand.result for strand in strands]
    finally:
        for strand in strands:
            strand.cancel()


class _CancelledError(BaseException):
    """Raised out of an open question, to end its function; no ``except Exception`` on the way stops it."""


class _Strand(Generic[Question, Answer, Result]):
    """One function in its thread; it moves only while `go_on` waits for it."""

    question: Question
    answer: Answer
    result: Result

    def __init__(self, function: Callable[[Ask[Question, Answer]], Result]) -> None:
        self._function = function
        self._may_go = threading.Semaphore(0)
        self._stands = threading.Semaphore(0)
        self._is_cancelled = False
        self._error: BaseException | None = None
        self.has_ended = False
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), daemon=True)

    def go_on(self) -> None:
        """Let the function run to its next question or its end; raises what it raises."""
        if self._thread.ident is None:
            self._thread.start()
        self._may_go.release()
        self._stands.acquire()
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """End the function at its open question, if it has not ended."""
        self._is_cancelled = True
        if self._thread.ident is not None:
            self._may_go.release()
            self._thread.join()

    def _run(self) -> None:
        self._may_go.acquire()
        try:
            self.result = self._function(self._ask)
        except _CancelledError:
            pass
        except BaseException as error:  # noqa: BLE001 (handed to the caller's thread)
            self._error = error
        self.has_ended = True
        self._stands.release()

    def _ask(self, question: Question) -> Answer:
        self.question = question
        self._stands.release()
        self._may_go.acquire()
        if self._is_cancelled:
            raise _CancelledError
        return self.answer
