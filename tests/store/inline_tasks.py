"""The tasks of `load --ray`, run one after the other in this process; what they get and give is pickled, as on its way to a
node."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

from evalpipe.store.row_tasks import Workers

Value = TypeVar("Value")


def carried(value: Value) -> Value:
    """The value as another process gets it."""
    found: Value = pickle.loads(pickle.dumps(value))
    return found


class InlineExecutor(Executor):
    """`tasks`: the names of what was run. `fails_at`: the number of the task that raises `error`, from 1."""

    def __init__(self, fails_at: int = 0, error: BaseException | None = None) -> None:
        self.tasks: list[str] = []
        self._fails_at, self._error = fails_at, error

    def submit(self, task: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.tasks.append(task.__name__)
        try:
            if self._error is not None and len(self.tasks) == self._fails_at:
                raise self._error
            future.set_result(carried(task(*carried(arguments), **carried(named))))
        except BaseException as error:  # noqa: BLE001  raised where the result is asked for
            future.set_exception(error)
        return future


def inline(executor: InlineExecutor | None = None, n_tasks: int = 3) -> Workers:
    return Workers(executor=executor or InlineExecutor(), n_tasks=n_tasks)
