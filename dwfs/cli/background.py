"""Going to the background: the parent waits until the work is ready or has failed.

The fork happens before the event loop, any thread and any key exists; so nothing is lost in it.
The child reports through a pipe: one JSON line, `{}` when ready, or its error and exit code. If the
pipe closes without a word, the child died, and the parent says so.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from dwfs.cli.failure import describe, report
from dwfs.errors import DwfsError
from dwfs.limits import MOUNT_LOG_SIZE
from dwfs.node.control import RefusedError

Ready = Callable[[], None]
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Report(msgspec.Struct):
    error: str | None = None
    exit_code: int = 0


def run_in_background(work: Callable[[Ready], int], log_file: Path) -> int:
    """Run `work(ready)` in a child process; return 0 once it has called `ready()`.

    Raises DwfsError with the child's own words and exit code if it fails before that.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        _run_child(work, send, log_file)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        line = pipe.readline()
    if line:
        message = msgspec.json.decode(line, type=_Report)
        if message.error is not None:
            os.waitpid(child, 0)
            raise RefusedError(message.error, message.exit_code)
        return 0
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        raise DwfsError(f"the background process ended without a message; see {log_file}")
    # What a damaged database does (SIGBUS, SIGSEGV) is over when an opening failed twice.
    how = signal.Signals(os.WTERMSIG(status)).name
    raise DwfsError(
        f"the background process was killed by {how}; see {log_file}. Try again; after the second "
        "time what this machine remembers of the pool is made anew from the disks"
    )


def _run_child(work: Callable[[Ready], int], send: int, log_file: Path) -> None:
    """Become a daemon, do the work, exit. Never returns."""
    code = 1
    told = False

    def tell(message: _Report) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(send, msgspec.json.encode(message) + b"\n")
            os.close(send)

    try:
        os.setsid()
        os.chdir("/")
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _detach_streams()
        log_to_file(log_file)
        code = work(lambda: tell(_Report()))
    # The child's outermost gateway: the error goes to the parent, or if that is gone, to the log.
    except BaseException as error:
        text, code = describe(error)
        if told:
            logging.getLogger(__name__).critical("%s", text, exc_info=error)
        else:
            logging.getLogger(__name__).error("%s", text)
            tell(_Report(text, code))
    finally:
        logging.shutdown()
        os._exit(code)  # not sys.exit: the parent's cleanup is not ours to run


def run_in_foreground(program: str, work: Callable[[Ready], int]) -> int:
    """Run `work` here, with its log on stderr."""
    logging.basicConfig(stream=sys.stderr, format=_FORMAT, level=logging.INFO)
    try:
        return work(lambda: None)
    # As in the background: one line instead of a traceback.
    except Exception as error:
        return report(program, error)


def log_to_file(path: Path) -> None:
    """Send the log to a bounded file: it is rotated once, then the older half is dropped.

    Does nothing if the process logs somewhere already.
    """
    if logging.getLogger().handlers:
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=MOUNT_LOG_SIZE, backupCount=1)
    os.chmod(path, 0o600)
    handler.setFormatter(logging.Formatter(_FORMAT))
    logging.basicConfig(handlers=[handler], level=logging.INFO)


def _detach_streams() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)
