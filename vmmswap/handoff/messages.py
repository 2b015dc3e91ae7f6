# SPDX-License-Identifier: GPL-2.0-or-later
"""The messages of the hand-off: untrusted bytes in, frozen dataclasses out.

What can be known from the message and the number of its fds is checked here: types, ranges, alignment,
overlap, wrap-around, and that each fd has its use. What the fds are is checked in `fds`, who maps what in
`maps`. Wrong form (types, missing fields, fds) is ProtocolError, wrong values of a region
InvalidRegionError, another version NotSupportedError. Unknown fields are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vmmswap.errors import InvalidRegionError, NotSupportedError, ProtocolError
from vmmswap.handoff.fields import Fields, decode, objects, show
from vmmswap.handoff.region import PAGE_SIZE, PRIVATE, Region, is_private

VERSION = 1
MAX_REGIONS = 64
MAX_TOTAL_BYTES = 1 << 44  # 16 TiB: page numbers fit 32 bits
MAX_FDS = 253  # the kernel's SCM_MAX_FD
MAX_MESSAGE_BYTES = 1 << 20
_MAX_FILE_BYTES = (1 << 63) - 1
_MAX_SOCKET_PATH_BYTES = 107


@dataclass(frozen=True, slots=True)
class Register:
    """fds: uffd, memfd 0, memfd 1, ...; Region.memfd counts the memfds of this message. With private memory:
    uffd, mailbox, the VMM's pagemap.
    """

    regions: tuple[Region, ...]
    memfd_count: int
    dummy_page: int | None = None
    pins: bool = True
    qmp: str | None = None

    @property
    def is_private(self) -> bool:
        return is_private(self.regions)


@dataclass(frozen=True, slots=True)
class AddProcess:
    """fds: uffd, pidfd; Region.memfd counts the VM's memfds in the order in which they were registered."""

    regions: tuple[Region, ...]
    dummy_page: int | None = None


@dataclass(frozen=True, slots=True)
class AddRegion:
    """fds: as register's, and the uffd may be left out; Region.memfd counts the memfds of this message. With
    private memory there are none.
    """

    regions: tuple[Region, ...]
    memfd_count: int
    has_uffd: bool


@dataclass(frozen=True, slots=True)
class RemoveRegion:
    """No fds; each region as it was registered, Region.memfd as in AddProcess."""

    regions: tuple[Region, ...]


@dataclass(frozen=True, slots=True)
class Attach:
    """fds: the pidfd of the process to attach to. regions: START-END, as in /proc/PID/maps; none: all. uid,
    gid, caller_pid: of the process that wants it; its pid is 0 if that does not matter.
    """

    pins: bool = True
    qmp: str | None = None
    force: bool = False
    regions: tuple[str, ...] = ()
    uid: int = 0
    gid: int = 0
    caller_pid: int = 0


@dataclass(frozen=True, slots=True)
class FirecrackerRegister:
    """fds: uffd. Region.memfd is always 0: the snapshot's memory file, which the monitor was given."""

    regions: tuple[Region, ...]


Message = Register | AddProcess | AddRegion | RemoveRegion | Attach | FirecrackerRegister


def attach_line(options: dict[str, object]) -> bytes:
    """The attach message with these fields. TypeError or ValueError if they are no JSON."""
    text = json.dumps({"vmmswap": VERSION, "type": "attach", **options}, allow_nan=False)
    return text.encode() + b"\n"


def parse(data: bytes, fd_count: int) -> Message:
    """The message in one line that came with fd_count fds, or a VmmswapError that names the field."""
    message = Fields(decode(data))
    kind = message.string("type")
    if "vmmswap" in message or kind in ("register", "attach"):
        version = message.integer("vmmswap")
        if version != VERSION:
            raise NotSupportedError(f"vmmswap: version {version} is not known here: send version {VERSION}")
    match kind:
        case "register":
            return _register(message, fd_count)
        case "add-process":
            return _add_process(message, fd_count)
        case "add-region":
            return _add_region(message, fd_count)
        case "remove-region":
            _check_fds(fd_count, 0, "none")
            return RemoveRegion(_regions(message))
        case "attach":
            _check_fds(fd_count, 1, "the pidfd of the process")
            return _attach(message)
    raise ProtocolError(
        f"type: {show(kind)} is none of register, add-process, add-region, remove-region, attach"
    )


def parse_firecracker(data: bytes, fd_count: int) -> FirecrackerRegister:
    """Firecracker's array of regions, which comes with one uffd."""
    items = objects(decode(data), "regions", MAX_REGIONS)
    regions = tuple(_region(item, _firecracker_page_size(item), memfd=0) for item in items)
    _check_together(regions)
    _check_fds(fd_count, 1, "the userfaultfd")
    return FirecrackerRegister(regions)


def _register(message: Fields, fd_count: int) -> Register:
    regions = _regions(message)
    memfd_count = 0 if is_private(regions) else _memfd_count(regions)
    if is_private(regions):
        _check_fds(fd_count, 3, "a userfaultfd, the mailbox and /proc/self/pagemap, for private memory")
    else:
        _check_fds(fd_count, 1 + memfd_count, f"a userfaultfd and {memfd_count} memfds")
    return Register(
        regions, memfd_count, _dummy_page(message, regions), message.boolean("pins", True), _qmp(message)
    )


def _attach(message: Fields) -> Attach:
    uid = message.integer("uid", 0)
    return Attach(
        message.boolean("pins", True),
        _qmp(message),
        message.boolean("force", False),
        message.strings("regions", MAX_REGIONS),
        uid,
        message.integer("gid") if uid else message.integer("gid", 0),
        message.integer("caller_pid", 0),
    )


def _add_process(message: Fields, fd_count: int) -> AddProcess:
    regions = _regions(message)
    _check_fds(fd_count, 2, "a userfaultfd and the pidfd of its process")
    return AddProcess(regions, _dummy_page(message, regions))


def _add_region(message: Fields, fd_count: int) -> AddRegion:
    regions = _regions(message)
    memfd_count = 0 if is_private(regions) else _memfd_count(regions)
    has_uffd = fd_count == memfd_count + 1
    if not has_uffd:
        _check_fds(fd_count, memfd_count, f"{memfd_count} memfds, after a userfaultfd or alone")
    return AddRegion(regions, memfd_count, has_uffd)


def _check_fds(fd_count: int, wanted: int, what: str) -> None:
    if fd_count != wanted:
        problem = "missing" if fd_count < wanted else "surplus"
        raise ProtocolError(f"fds: {fd_count} came: {problem}: the message needs {wanted} ({what})")


def _memfd_count(regions: Sequence[Region]) -> int:
    used = {region.memfd for region in regions}
    count = max(used) + 1
    for memfd in range(count):
        if memfd not in used:
            raise ProtocolError(f"regions: no region uses memfd {memfd}, though one uses memfd {count - 1}")
    return count


def _regions(message: Fields) -> tuple[Region, ...]:
    items = message.objects("regions", MAX_REGIONS)
    regions = tuple(_region(item, item.integer("page_size"), _memfd(item)) for item in items)
    for idx, region in enumerate(regions):
        if (region.memfd == PRIVATE) != is_private(regions):
            raise NotSupportedError(
                f"regions[{idx}].private: regions[0] differs: a VM has private memory or memfds, not both"
            )
    _check_together(regions)
    return regions


def _memfd(item: Fields) -> int:
    if item.boolean("private", False):
        for key in ("memfd", "offset"):
            if key in item:
                raise ProtocolError(f"{item.name_of(key)}: private memory is in no memfd: leave it out")
        return PRIVATE
    memfd = item.integer("memfd")
    if not 0 <= memfd < MAX_FDS:
        raise ProtocolError(f"{item.name_of('memfd')}: {memfd} is not 0 to {MAX_FDS - 1}")
    return memfd


def _firecracker_page_size(item: Fields) -> int:
    """`page_size_kib` is Firecracker's older name of page_size; despite the name it is in bytes too."""
    sizes = [item.integer(key) for key in ("page_size", "page_size_kib") if key in item]
    if len(set(sizes)) > 1:
        raise InvalidRegionError(
            f"{item.name_of('page_size_kib')}: {sizes[1]} differs from page_size {sizes[0]}"
        )
    return sizes[0] if sizes else item.integer("page_size")


def _region(item: Fields, page_size: int, memfd: int) -> Region:
    if page_size != PAGE_SIZE:
        raise InvalidRegionError(
            f"{item.name_of('page_size')}: {page_size} is not {PAGE_SIZE}, this machine's page size;"
            " huge pages are not supported"
        )
    addr = _aligned(item, "base_host_virt_addr")
    size_bytes = _aligned(item, "size")
    offset_bytes = addr if memfd == PRIVATE else _aligned(item, "offset")
    if addr == 0:
        raise InvalidRegionError(
            f"{item.name_of('base_host_virt_addr')}: 0 is not an address of guest memory"
        )
    if not 0 < size_bytes <= MAX_TOTAL_BYTES:
        raise InvalidRegionError(
            f"{item.name_of('size')}: {size_bytes} is not 1 page to {MAX_TOTAL_BYTES} bytes"
        )
    if addr + size_bytes > 1 << 64:
        raise InvalidRegionError(
            f"{item.name_of('size')}: {size_bytes} from address {addr:#x} wraps around the end of memory"
        )
    if memfd != PRIVATE and offset_bytes + size_bytes > _MAX_FILE_BYTES:
        raise InvalidRegionError(
            f"{item.name_of('offset')}: {offset_bytes} + size is past the end of any file"
        )
    return Region(addr, size_bytes, offset_bytes, memfd)


def _aligned(item: Fields, key: str) -> int:
    value = item.integer(key)
    if value < 0:
        raise InvalidRegionError(f"{item.name_of(key)}: {value} is negative")
    if value % PAGE_SIZE:
        raise InvalidRegionError(
            f"{item.name_of(key)}: {value} is not a multiple of the page size {PAGE_SIZE}"
        )
    return value


def _check_together(regions: Sequence[Region]) -> None:
    total = sum(region.size_bytes for region in regions)
    if total > MAX_TOTAL_BYTES:
        raise InvalidRegionError(f"regions: {total} bytes together are more than {MAX_TOTAL_BYTES}")
    check_no_overlap(regions, [region.memfd for region in regions])


def check_no_overlap(regions: Sequence[Region], files: Sequence[object]) -> None:
    """InvalidRegionError if two regions share addresses, or bytes of one file.

    files: for each region, what tells its file from others.
    """
    by_addr = sorted((region.addr, region.end, idx) for idx, region in enumerate(regions))
    _check_sorted(by_addr, "base_host_virt_addr")
    by_file: dict[object, list[tuple[int, int, int]]] = {}
    for idx, (region, file) in enumerate(zip(regions, files, strict=True)):
        by_file.setdefault(file, []).append((region.offset_bytes, region.end_offset, idx))
    for spans in by_file.values():
        _check_sorted(sorted(spans), "offset")


def _check_sorted(spans: Iterable[tuple[int, int, int]], key: str) -> None:
    last_end, last_idx = 0, -1
    for start, end, idx in spans:
        if start < last_end:
            first, second = sorted((idx, last_idx))
            raise InvalidRegionError(
                f"regions[{second}].{key}: {start:#x} to {end:#x} overlaps regions[{first}]"
            )
        last_end, last_idx = end, idx


def _dummy_page(message: Fields, regions: Iterable[Region]) -> int | None:
    if "dummy_page" not in message:
        return None
    addr = _aligned(message, "dummy_page")
    if addr == 0 or addr + PAGE_SIZE > 1 << 64:
        raise InvalidRegionError(f"dummy_page: {addr:#x} is not the address of a page")
    for idx, region in enumerate(regions):
        if region.addr <= addr < region.end:
            raise InvalidRegionError(
                f"dummy_page: {addr:#x} lies in regions[{idx}]: map a page of its own for it"
            )
    return addr


def _qmp(message: Fields) -> str | None:
    if "qmp" not in message:
        return None
    path = message.string("qmp")
    try:
        size = len(path.encode("utf-8"))
    except UnicodeEncodeError:
        raise ProtocolError("qmp: the path is not UTF-8") from None
    if not path.startswith("/") or "\0" in path or size > _MAX_SOCKET_PATH_BYTES:
        raise ProtocolError(
            f"qmp: {show(path)} is not an absolute path of at most {_MAX_SOCKET_PATH_BYTES} bytes"
        )
    return path


def encode(kind: str, regions: Iterable[Region] = (), **more: object) -> bytes:
    """One message as a VMM sends it, newline included. Values of None are left out."""
    message: dict[str, object] = {"vmmswap": VERSION, "type": kind}
    listed = [
        {"base_host_virt_addr": region.addr, "size": region.size_bytes, "page_size": PAGE_SIZE}
        | (
            {"private": True}
            if region.memfd == PRIVATE
            else {"offset": region.offset_bytes, "memfd": region.memfd}
        )
        for region in regions
    ]
    if listed:
        message["regions"] = listed
    message |= {key: value for key, value in more.items() if value is not None}
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"
