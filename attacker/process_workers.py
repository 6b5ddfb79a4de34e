"""Attacks spread over processes of this machine."""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import Queue

import torch

from attacker.attack_worker import AttackTask, StepReporter, TaskProgress, run_task
from attacker.campaign_observer import CampaignObserver, TaskFailure, failure_of

_SECONDS_BETWEEN_LOOKS = 0.1
_DIED = "the worker process died (out of memory, or killed); run the same command again to resume"


def run_in_processes(
    tasks: Sequence[AttackTask], *, workers: int, observer: CampaignObserver
) -> tuple[TaskFailure, ...]:
    """Run tasks; each writes its own result.

    A worker that is killed takes the whole pool with it, and nobody knows whose task it was. Those that were not done
    are run again one at a time: the task that kills its worker then names itself, and the others go on.

    Args:
        tasks: At least one.
        workers: Processes at a time, each with one torch thread.
        observer: Told about steps and results.

    Returns:
        The tasks that failed.
    """
    failures: list[TaskFailure] = []
    left = list(tasks)
    while left:
        left = _run_in_pool(left, workers, observer, failures)
        if left and workers == 1:
            failures.append(TaskFailure(key=left.pop(0).key, reason=_DIED))
            observer.on_failed(failures[-1])
        workers = 1
    return tuple(failures)


def _run_in_pool(
    tasks: Sequence[AttackTask], workers: int, observer: CampaignObserver, failures: list[TaskFailure]
) -> list[AttackTask]:
    """Run tasks in one pool; return those that were not done when it broke, in order."""
    context = multiprocessing.get_context("spawn")
    progress: multiprocessing.Queue[TaskProgress] = context.Queue()
    executor = ProcessPoolExecutor(min(len(tasks), workers), context, initializer=_prepare, initargs=(progress,))
    try:
        return _watch({executor.submit(_run, task): task for task in tasks}, progress, observer, failures)
    except BaseException:
        # Workers ignore Ctrl-C; they are ended here, and what they had not written is done again next time.
        executor.shutdown(wait=False, cancel_futures=True)
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        executor.shutdown()
        progress.close()


_queue: "Queue[TaskProgress] | None" = None


def _prepare(queue: "Queue[TaskProgress]") -> None:
    """Set up a worker process: one thread, and progress goes to the queue."""
    global _queue  # the one way to hand a queue to a pool's workers
    _queue = queue
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process with its parent, however that ended: the pool's pipes, shared by workers, do not tell."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(task: AttackTask) -> None:
    assert _queue is not None
    run_task(task, StepReporter(task.key, _queue.put))


def _watch(
    futures: dict[Future[None], AttackTask],
    progress: "multiprocessing.Queue[TaskProgress]",
    observer: CampaignObserver,
    failures: list[TaskFailure],
) -> list[AttackTask]:
    undone: list[AttackTask] = []
    while futures:
        _report_steps(progress, observer)
        for future in [future for future in futures if future.done()]:
            task, error = futures.pop(future), future.exception()
            if error is None:
                observer.on_finished(task.key)
            elif isinstance(error, BrokenProcessPool):
                undone.append(task)
            else:
                failures.append(failure_of(task.key, error))
                observer.on_failed(failures[-1])
    return undone


def _report_steps(progress: "multiprocessing.Queue[TaskProgress]", observer: CampaignObserver) -> None:
    try:
        step = progress.get(timeout=_SECONDS_BETWEEN_LOOKS)
        while True:
            observer.on_step(step.key, step.progress)
            step = progress.get_nowait()
    except queue.Empty:
        return
