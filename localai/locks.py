"""Locks between processes: one file each, held by the system, so that a killed process holds none."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

# What disks without such locks answer: some network disks, some of FUSE.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, getattr(errno, "ENOTSUP", errno.EOPNOTSUPP)}


def hold(path: Path, on_wait: Callable[[], None] = lambda: None, timeout_s: float = -1) -> AbstractContextManager[Any]:
    """The held lock; leaving it as a context releases it. Its folder is made.

    `on_wait` is told once that another process holds it. Raises TimeoutError after `timeout_s` (less than 0: never),
    OSError for what the disk refuses.
    """
    import filelock

    warnings.filterwarnings("ignore", "flock not supported")  # filelock's, where it finds that out itself
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _acquired(filelock.FileLock(path), on_wait, timeout_s)
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    # A file that is there instead; under another name, since the attempt may have left the one of the other kind.
    return _acquired(filelock.SoftFileLock(path.with_name(f"{path.name}.soft")), on_wait, timeout_s)


def _acquired(lock: Any, on_wait: Callable[[], None], timeout_s: float) -> AbstractContextManager[Any]:
    import filelock

    try:
        return lock.acquire(timeout=0)  # type: ignore[no-any-return]
    except filelock.Timeout:
        if timeout_s == 0:
            raise
    on_wait()
    return lock.acquire(timeout=timeout_s)  # type: ignore[no-any-return]


@contextmanager
def if_free(path: Path, make: bool = True) -> Iterator[bool]:
    """Whether no other process holds it; then none can take it until this is left.

    Without `make` a lock that is not there counts as free, and nothing is written. One that cannot be told is not free.
    """
    try:
        if not make:
            path.lstat()
        held = hold(path, timeout_s=0)
    except (FileNotFoundError, NotADirectoryError):
        yield not make
        return
    except OSError:  # a TimeoutError, too
        yield False
        return
    with held:
        yield True
