"""Log lines of the long-running commands: `logging`, one line an event, as text or as JSON.

Writing a line neither raises nor waits: a thread of its own writes, and where the reader is gone, full or slow, lines are
dropped and counted. The collector's children log JSON to a pipe that the supervisor reads; it alone writes to stderr.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import sys
import threading
import time
import traceback
from collections import deque
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from evalpipe.text import printable

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
_MAX_WAITING = 2000
_MAX_LINE = 32_000
"""characters; a longer line is cut"""
_FLUSH_S = 1.0
"""how long an end waits for the reader of the log"""
_PIECE_BYTES = 1 << 16


class LineWriter:
    """Writes lines to a descriptor from a thread of its own. `put` never raises and never waits."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lines: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_writing = False
        self._is_torn = False
        self.n_dropped = 0

    def put(self, line: bytes) -> None:
        """`line`: whole, with its newline."""
        with self._changed:
            if len(self._lines) >= _MAX_WAITING:
                self.n_dropped += 1
                return
            self._lines.append(line)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="log", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no further thread can be had: the lines wait, and the next one tries again
                    return
                self._thread = thread
            self._changed.notify_all()

    def flush(self, within_s: float = _FLUSH_S) -> None:
        """Wait until what was put is written or dropped, for so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines and not self._is_writing, within_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._lines))
                line = self._lines.popleft()
                self._is_writing = True
            if not self._write(line):
                self.n_dropped += 1

    def _write(self, line: bytes) -> bool:
        data = memoryview(b"\n" + line if self._is_torn else line)
        while data:
            try:
                n_written = os.write(self._fd, data)
            except BlockingIOError:  # another process made it non-blocking
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll(1000)
                continue
            except OSError:  # the reader is gone, the disk full, the descriptor closed: it cannot be reported anywhere
                return False
            data = data[n_written:]
            self._is_torn = bool(data)
        return True


class _Handler(logging.Handler):
    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except (TypeError, ValueError) as error:
            text = f"a log line cannot be formatted ({error}): {record.msg!r}"
        self._writer.put(text.encode("utf-8", "replace") + b"\n")

    def end(self, text: str) -> None:
        if isinstance(self.formatter, JsonFormatter):
            logging.getLogger("evalpipe").critical("%s", text)
        else:
            self._writer.put(f"evalpipe: {_one_line(text)}\n".encode("utf-8", "replace"))

    def flush(self) -> None:
        self._writer.flush()


class TextFormatter(logging.Formatter):
    """`2026-11-28T06:38:02.123Z INFO collect: message`."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        process = getattr(record, "of_process", self._process)
        experiment = getattr(record, "of_experiment", None)
        if experiment is not None:
            process = f"{process} {experiment}"
        text = f"{_instant(record.created)} {record.levelname} {process}: {_one_line(record.getMessage())}"
        if record.exc_info:
            text += f" | {_traceback(record.exc_info)}"
        trace = getattr(record, "fields", {}).get("traceback")
        return text if trace is None else f"{text} | {_one_line(str(trace))}"


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, process, logger, message, and what the event has besides (request_id, arm, …)."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _instant(record.created),
            "level": record.levelname.lower(),
            "process": getattr(record, "of_process", self._process),
            "logger": record.name,
            "message": _one_line(record.getMessage()),
        }
        experiment = getattr(record, "of_experiment", None)
        if experiment is not None:
            line["experiment"] = experiment
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = _traceback(record.exc_info)
        return json.dumps(line, default=str)


def set_up_logging(process: str, *, log_format: str = "text", level: str = "info") -> None:
    """All of this process's log lines go to stderr, each as one line; so do exceptions nobody caught.

    Args:
        process: what the lines are of, e.g. "collect".
        log_format: "text" or "json".
        level: the least level that is written: "debug", "info", "warning" or "error".
    """
    keep_standard_streams()
    handler = _Handler(LineWriter(2))
    handler.setFormatter(JsonFormatter(process) if log_format == "json" else TextFormatter(process))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("evalpipe").setLevel(level.upper())
    logging.raiseExceptions = False
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


def report_error(text: str) -> bool:
    """The line of an error that ends the process, without waiting for a reader. False: logging is not set up."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler):
            handler.end(text)
            return True
    return False


def keep_standard_streams() -> None:
    """Descriptors 0, 1 and 2 that are closed lead to /dev/null: otherwise the next file that is opened, maybe a segment of the
    spool, would get what is written to stderr."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != fd:
                os.dup2(opened, fd)
                os.close(opened)
            os.set_inheritable(fd, True)


def log_event(logger: logging.Logger, level: int, message: str, **fields: Any) -> None:
    """A line whose JSON has `fields` besides; `message` has all of it as text."""
    logger.log(level, "%s", message, extra={"fields": fields})


class PipedLines:
    """The stderr of a child as log lines of this process: JSON lines as they were logged, others as errors.

    `write_fd` is the child's end, to be closed here once the child is started. `experiment`: which of several the lines are of.
    """

    def __init__(
        self,
        process: str,
        loop: asyncio.AbstractEventLoop,
        *,
        level: int = logging.ERROR,
        experiment: str | None = None,
    ) -> None:
        self._process, self._loop, self._level, self._experiment = process, loop, level, experiment
        self._fd, self.write_fd = os.pipe()
        self._rest = b""
        self._is_open = True
        self.last: str | None = None
        """the last line's message"""
        os.set_blocking(self._fd, False)
        loop.add_reader(self._fd, self._readable)

    def started(self) -> None:
        """The child has its end."""
        os.close(self.write_fd)

    def close(self) -> None:
        """The child has ended: what it wrote last is logged. (Its own children may still hold the pipe.)"""
        while self._is_open and self._readable():
            pass
        if self._is_open:
            self._end()

    def _readable(self) -> bool:
        try:
            piece = os.read(self._fd, _PIECE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            piece = b""
        if not piece:
            self._end()
            return False
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self._line(line)
        if len(self._rest) > _PIECE_BYTES * 4:
            self._line(self._rest)
            self._rest = b""
        return True

    def _end(self) -> None:
        self._is_open = False
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        if self._rest:
            self._line(self._rest)

    def _line(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").strip()
        if not text:
            return
        try:
            logged = json.loads(text)
            level = logging.getLevelNamesMapping()[logged.pop("level").upper()]
            name, message = str(logged.pop("logger")), str(logged.pop("message"))
            created = datetime.fromisoformat(logged.pop("time")).timestamp()
            process = logged.pop("process")
        except (ValueError, KeyError, AttributeError, TypeError):
            self.last = text.removeprefix("evalpipe: ")
            logging.getLogger("evalpipe.collector").log(
                self._level, "%s", self.last, extra={"of_process": self._process, "of_experiment": self._experiment}
            )
            return
        self.last = message
        logger = logging.getLogger(name)
        record = logger.makeRecord(name, level, "", 0, "%s", (message,), None)
        record.created, record.of_process, record.fields = created, process, logged
        record.of_experiment = self._experiment
        logger.handle(record)


def _instant(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _one_line(text: str) -> str:
    text = printable(text).replace("\n", " | ")
    return text if len(text) <= _MAX_LINE else f"{text[:_MAX_LINE]} … (cut)"


def _traceback(exc_info: Any) -> str:
    return _one_line("".join(traceback.format_exception(*exc_info)).strip())


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("evalpipe").critical("ended by %s: %s", kind.__name__, error, exc_info=(kind, error, trace))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        _uncaught(args.exc_type, args.exc_value, args.exc_traceback)


class OnceAMinute:
    """Lets an event of one kind through once a minute, so that a fault that repeats does not fill the log."""

    def __init__(self, every_s: float = 60.0) -> None:
        self._every_s = every_s
        self._at: dict[tuple[object, ...], float] = {}

    def is_due(self, *kind: object) -> bool:
        now = time.monotonic()
        if now - self._at.get(kind, float("-inf")) < self._every_s:
            return False
        if len(self._at) > 1000:
            self._at.clear()
        self._at[kind] = now
        return True
