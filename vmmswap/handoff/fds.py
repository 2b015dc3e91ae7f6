# SPDX-License-Identifier: GPL-2.0-or-later
"""What a received fd really is. Each check raises a VmmswapError that names the field and says why."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from dataclasses import dataclass, replace
from pathlib import Path

from vmmswap.errors import InvalidRegionError, NotSupportedError, ProtocolError
from vmmswap.linux import userfaultfd
from vmmswap.linux.files import FileId
from vmmswap.linux.process import is_alive
from vmmswap.linux.userfaultfd import Feature

_TMPFS_MAGIC = 0x01021994
_HUGETLBFS_MAGIC = 0x958458F6
_STATFS_BYTES = 256  # more than struct statfs has on any Linux; its first word is the type
_PUNCH_SEALS = {fcntl.F_SEAL_WRITE: "F_SEAL_WRITE", 0x10: "F_SEAL_FUTURE_WRITE"}
_FORBIDDEN = {
    Feature.WP_ASYNC: "write faults would be answered by the kernel and never seen",
    Feature.SIGBUS: "a fault would kill the VMM instead of waiting",
}
_LIMITS = {
    Feature.EVENT_FORK: "EVENT_FORK: forked children are not seen by themselves",
    Feature.EVENT_REMOVE: "EVENT_REMOVE: memory that the guest gives up is not seen",
    Feature.PAGEFAULT_FLAG_WP: "PAGEFAULT_FLAG_WP: no swap-out without stopping the guest",
    Feature.WP_HUGETLBFS_SHMEM: "WP_HUGETLBFS_SHMEM: no swap-out without stopping the guest",
    Feature.POISON: "POISON: a page that cannot be read back leaves its readers waiting",
}
_COMES_BACK = (
    "EVENT_REMOVE: what the guest gives up before it was brought in comes back from the snapshot. Firecracker"
    " leaves it out only for VMs without a balloon"
)

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class UffdInfo:
    features: Feature
    limits: tuple[str, ...]  # what is missing in features, and what that takes away; for people

    @property
    def event_fork(self) -> bool:
        return Feature.EVENT_FORK in self.features

    @property
    def event_remove(self) -> bool:
        return Feature.EVENT_REMOVE in self.features

    @property
    def write_protect(self) -> bool:
        return Feature.PAGEFAULT_FLAG_WP | Feature.WP_HUGETLBFS_SHMEM in self.features


def _target(fd: int) -> str:
    """What /proc says that the fd is; a path in it is the peer's, so it is shortened and quoted."""
    return ascii(str(Path(f"/proc/self/fd/{fd}").readlink())[:60])


def _file_system(fd: int) -> int:
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.fstatfs(fd, buffer) != 0:
        raise InvalidRegionError(f"fstatfs of the fd: {os.strerror(ctypes.get_errno())}")
    return int(ctypes.c_ulong.from_buffer(buffer).value)


def check_memfd(fd: int, field: str, end_offset_bytes: int) -> FileId:
    """The identity of a shmem file (memfd or a file on tmpfs) that can be read, punched, and is large
    enough.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & os.O_PATH:
        raise InvalidRegionError(f"{field}: {_target(fd)} is not open for reading and writing")
    seals = _seals(fd)
    if seals is None:
        raise InvalidRegionError(f"{field}: {_target(fd)} is neither a memfd nor a file on tmpfs")
    file_system = _file_system(fd)
    if file_system == _HUGETLBFS_MAGIC:
        raise InvalidRegionError(
            f"{field}: {_target(fd)} is a hugetlb file: huge pages cannot be swapped out. Use normal pages"
        )
    if file_system != _TMPFS_MAGIC:
        raise InvalidRegionError(f"{field}: {_target(fd)} is neither a memfd nor a file on tmpfs")
    if flags & os.O_ACCMODE != os.O_RDWR:
        raise InvalidRegionError(f"{field}: {_target(fd)} is not open for reading and writing")
    for seal, name in _PUNCH_SEALS.items():
        if seals & seal:
            raise InvalidRegionError(
                f"{field}: the memfd is sealed with {name}: the kernel would refuse to punch holes in it"
            )
    status = os.fstat(fd)
    if status.st_size < end_offset_bytes:
        raise InvalidRegionError(
            f"{field}: the memfd has {status.st_size} bytes, the region ends at {end_offset_bytes}"
        )
    return FileId(status.st_dev, status.st_ino)


def _seals(fd: int) -> int | None:
    """None: neither shmem nor hugetlb. The kernel looks at the file alone: it asks no file system, as fstat()
    and fstatfs() do, whose server may be the peer's.
    """
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return None


def check_uffd(fd: int, field: str = "fds[0]", more: Feature = Feature(0)) -> UffdInfo:  # noqa: B008 - frozen
    """What the userfaultfd can do. If UFFDIO_API was not done, it is done now, with `more` features than
    usual; O_NONBLOCK is set.
    """
    if not userfaultfd.is_userfaultfd(fd):
        raise ProtocolError(f"{field}: {_target(fd)} is not a userfaultfd")
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
    features = userfaultfd.features_of(fd)
    if features is None:
        features = _initialise(fd, more)
    for forbidden, reason in _FORBIDDEN.items():
        if forbidden in features:
            raise NotSupportedError(f"{field}: the userfaultfd has the feature {forbidden.name}: {reason}")
    limits = tuple(text for feature, text in _LIMITS.items() if feature not in features)
    return UffdInfo(features, limits)


def check_uffd_of_snapshot(fd: int, field: str = "fds[0]") -> UffdInfo:
    """As check_uffd, for memory that the VMM has registered itself and fills from a snapshot.

    A child would share our notes on which pages are in, but not the pages. Without EVENT_REMOVE, which older
    Firecrackers ask for only if the VM has a balloon, what is given up before it was read comes back from the
    file.
    """
    if userfaultfd.is_userfaultfd(fd) and userfaultfd.features_of(fd) is None:
        raise ProtocolError(f"{field}: UFFDIO_API is not done: nothing can be registered with it yet")
    info = check_uffd(fd, field)
    if info.event_fork:
        raise NotSupportedError(
            f"{field}: the userfaultfd has the feature EVENT_FORK: private memory that is forked cannot be"
            " served"
        )
    limits = () if info.event_remove else (_COMES_BACK,)
    return replace(info, limits=limits)  # the others speak of what needs a memfd


def _initialise(fd: int, more: Feature) -> Feature:
    wanted = (userfaultfd.WANTED | more) & userfaultfd.kernel_features()
    for features in (wanted, wanted & ~Feature.EVENT_FORK):  # EVENT_FORK needs CAP_SYS_PTRACE
        try:
            userfaultfd.api(fd, features)
        except OSError as error:
            if error.errno == errno.EPERM:
                continue
            if error.errno == errno.EINVAL:  # the VMM was faster, or a kernel whose fdinfo does not tell
                break
            raise NotSupportedError(f"fds[0]: UFFDIO_API: {os.strerror(error.errno or 0)}") from None
        return features
    return userfaultfd.features_of(fd) or Feature(0)


def pid_of(pidfd: int, field: str) -> int:
    """The pid of a living process of our pid namespace that a pidfd names."""
    lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
    info = dict(line.split(":", 1) for line in lines if ":" in line)
    if "Pid" not in info:
        raise ProtocolError(f"{field}: {_target(pidfd)} is not a pidfd")
    pid = int(info["Pid"])
    if pid < 0 or not is_alive(pidfd):
        raise ProtocolError(f"{field}: the process of the pidfd has ended")
    if pid == 0:
        raise ProtocolError(f"{field}: the process of the pidfd is not in our pid namespace")
    if int(info["flags"], 8) & os.O_EXCL:
        raise ProtocolError(f"{field}: the pidfd is of a thread: send one of the process")
    return pid
