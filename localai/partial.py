"""A file on its way to the disk: one partial file for each blob, hashed as it grows, durable before it has its name."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType

from localai import json_file
from localai.alongside import CHUNK_BYTES, Digest, Disk
from localai.errors import DoesNotFit, LocalaiError

# The kernel takes memory for a file in pieces as large as the writes, and finds large ones only where memory was not
# used for long; a virtual machine must first get that from its host. Writes of 1 MB took it two to five times as long.
_WRITE_BYTES = 32 << 10
_SYNC_BYTES = 128 << 20  # what a power loss can cost at most, or what comes in a second
_HAND_OVER_BYTES = 8 << 20  # so much at a time the disk is told to write
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def disk_error(error: OSError, path: Path) -> LocalaiError:
    """The error to raise for what the disk refused: DoesNotFit when it is full, else LocalaiError with the reason."""
    if error.errno == errno.EFBIG:
        return DoesNotFit(
            f"the file system of {path.parent}, or a limit of this session, takes no file that large",
            "FAT32 ends at 4 GiB: format that disk as exFAT, take another one, or a model in smaller parts",
        )
    if error.errno in _FULL:
        return DoesNotFit(f"the disk is full: {path.parent}", "free some space and pull again; it goes on from there")
    if error.errno in _FORBIDDEN:
        return LocalaiError(
            f"may not write to {path.parent}", "check the folder's owner and permissions, or set HF_HOME"
        )
    return LocalaiError(f"cannot write {path}: {error.strerror or error}", "check the disk, then pull again")


def sha256_of(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of a file in hexadecimal; `progress` is told the bytes read so far. Raises OSError."""
    digest = hashlib.sha256()
    done = 0
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with open(path, "rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
            done += count
            if progress:
                progress(done)
    return digest.hexdigest()


def offset(progress: Callable[[int], None], done_bytes: int) -> Callable[[int], None]:
    """What tells `progress` of a file's bytes where `done_bytes` of others were done before."""
    return lambda count: progress(done_bytes + count)


class PartialFile:
    """What has come of a blob so far. Use as a context manager, with the blob's lock held.

    The partial file and what is known of it (the ETag it belongs to, how much is safe on the disk) stand beside
    `destination` and outlive the process. Every method raises DoesNotFit or LocalaiError for what the disk refuses;
    what was written stays.
    """

    def __init__(self, destination: Path) -> None:
        self._destination = destination
        self.path = partial_path(destination)
        self._state_path = _state_path(destination)
        self._descriptor = -1
        self._digest = Digest()
        self._disk: Disk | None = None
        self._etag: str | None = None
        self._handed_over = self._synced = 0
        self.position = 0

    def __enter__(self) -> PartialFile:
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | _NO_FOLLOW, 0o666)
        except OSError as error:
            self._digest.finish()
            raise disk_error(error, self.path) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._digest.finish()
        finally:
            self._close()

    def _close(self) -> None:
        with suppress(OSError):
            self._rest_disk()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def etag(self) -> str | None:
        """The strong ETag of the response that the partial file comes from, None where none was given."""
        return self._etag

    def resume(self, size_bytes: int, progress: Callable[[int], None]) -> int:
        """Hash what an earlier process left, and return how many bytes that is.

        More than `size_bytes` cannot be right and is thrown away. After a restart of the machine (perhaps a power loss)
        only what was synced is believed.
        """
        self._etag, boot, synced = _read_state(self._state_path)
        try:
            here = os.fstat(self._descriptor).st_size
            if here > size_bytes:
                here = 0
            elif boot is not None and boot != boot_id():
                here = min(here, synced)
            self._synced = min(here, synced)
            os.ftruncate(self._descriptor, here)
            with open(self._descriptor, "rb", buffering=0, closefd=False) as stream:
                while count := stream.readinto(self._digest.space()):
                    self._digest.filled(count)
                    self.position += count
                    progress(self.position)
        except OSError as error:
            raise disk_error(error, self.path) from error
        self._handed_over = self.position
        return self.position

    def restart(self, etag: str | None) -> None:
        """Throw away what is there and begin anew with the bytes of the response that has this ETag."""
        self._digest.finish()
        self._digest = Digest()
        try:
            self._rest_disk()
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            self.position = self._handed_over = 0
            self._etag = etag if etag is not None and is_strong_etag(etag) else None
            # Emptied first, described after: a crash between the two leaves nothing that belongs to another ETag.
            self._write_state(0)
        except OSError as error:
            raise disk_error(error, self.path) from error

    def space(self) -> memoryview:
        """A buffer, never empty, to receive the next bytes into; `append` then takes them."""
        return self._digest.space()

    def append(self, received: memoryview) -> None:
        """Append the bytes that came into the beginning of `space`, at once visible to the next process should this one
        be killed.
        """
        self._digest.filled(len(received))
        try:
            while received:
                written = os.write(self._descriptor, received[:_WRITE_BYTES])
                received = received[written:]
                self.position += written
        except OSError as error:
            raise disk_error(error, self.path) from error
        if self.position - self._handed_over >= min(_HAND_OVER_BYTES, _SYNC_BYTES):
            self._hand_over()

    def write(self, chunk: bytes) -> None:
        """Append bytes that were received elsewhere."""
        rest = memoryview(chunk)
        while rest:
            space = self.space()[: len(rest)]
            space[:] = rest[: len(space)]
            self.append(space)
            rest = rest[len(space) :]

    def _hand_over(self, ending: bool = False) -> None:
        if self._disk is None:
            self._disk = Disk(self._descriptor, self._handed_over, _SYNC_BYTES, self._write_state)
        elif self._disk.failure is not None:
            raise disk_error(self._disk.failure, self.path)
        self._handed_over = self.position
        self._disk.hand_over(self.position, ending)

    def _rest_disk(self) -> None:
        """Raises OSError where the disk did not take what it was given."""
        disk, self._disk = self._disk, None
        if disk is None:
            return
        try:
            disk.close()
        finally:  # also where Ctrl-C ends the wait
            if disk.failure is not None:
                self._keep_synced()
        if disk.failure is not None:
            raise disk.failure

    def _keep_synced(self) -> None:
        """Throw away what may be in memory alone: it would be read as sound, and synced without a fault."""
        with suppress(OSError):
            os.ftruncate(self._descriptor, self._synced)

    def _write_state(self, synced_bytes: int) -> None:
        state = {"etag": self._etag, "boot": boot_id(), "synced_bytes": synced_bytes}
        self._synced = synced_bytes
        replace_whole(self._state_path, json.dumps(state).encode("ascii"))

    def sha256(self) -> str:
        """The SHA-256 of everything up to `position`; nothing may be written after. The disk works meanwhile."""
        if self.position > self._handed_over:
            self._hand_over(ending=True)
        return self._digest.finish()

    def discard(self) -> None:
        """Remove the partial file: its bytes are not to be trusted."""
        self._close()
        discard_partial(self._destination)

    def publish(self) -> None:
        """Give the verified bytes their name, durably: file synced, renamed, folder synced."""
        try:
            self._rest_disk()
            try:
                os.fsync(self._descriptor)
            except OSError:
                self._keep_synced()
                raise
            self._close()  # Windows does not rename an open file
            os.replace(self.path, self._destination)
            sync_folder(self._destination.parent)
            self._state_path.unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(error, self.path) from error


def partial_path(destination: Path) -> Path:
    """Where the bytes of a blob gather until they are all there and verified."""
    return destination.with_name(f"{destination.name}.localai.partial")


def _state_path(destination: Path) -> Path:
    return destination.with_name(f"{destination.name}.localai.state")


def discard_partial(destination: Path) -> None:
    """Remove what an unfinished download of this blob left, if anything."""
    partial_path(destination).unlink(missing_ok=True)
    for state in destination.parent.glob(f"{glob.escape(_state_path(destination).name)}*"):
        state.unlink(missing_ok=True)


def _read_state(path: Path) -> tuple[str | None, str | None, int]:
    """ETag, boot and synced bytes of a partial file; (None, None, 0) where nothing is known or it makes no sense."""
    try:
        state = json_file.read(path, 4096)
        etag, boot, synced = state["etag"], state["boot"], state["synced_bytes"]
    except (OSError, ValueError, KeyError):
        return None, None, 0
    known = isinstance(boot, str) and type(synced) is int and synced >= 0
    strong = isinstance(etag, str) and is_strong_etag(etag)
    return etag if strong else None, boot if known else None, synced if known else 0


@cache
def boot_id() -> str:
    """What is another after each start of the machine, and only then (or, elsewhere than on Linux, a changed clock)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        import psutil

        return f"{psutil.boot_time():.0f}"


def is_strong_etag(text: str) -> bool:
    """Whether `If-Range` may carry this ETag (RFC 9110, 13.1.5: never a weak one); also bounds a hostile one."""
    return 2 < len(text) <= 512 and text[0] == text[-1] == '"' and text.isascii() and text.isprintable()


def replace_whole(path: Path, content: bytes) -> None:
    """Write a small note that readers see whole or not at all, with the permissions of the user's umask.

    For what may be lost in a power loss; what is there already, a planted link included, is replaced. Raises OSError.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o666)
    try:
        try:
            os.write(descriptor, content)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power loss, where the system can (Windows cannot open folders)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that do not sync folders say so with this
            raise
    finally:
        os.close(descriptor)
