# SPDX-License-Identifier: GPL-2.0-or-later
"""Takes over as a successor: turns what the fd store kept back into a VM that is served.

All that its guest waits for is here, and what this imports it waits for too: no event loop, no bus, no
hand-off, nothing that attaches.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

from vmmswap import message_ids
from vmmswap.config import Config
from vmmswap.engine import Engine, Job, Mover, Range, Recovered, TierFds
from vmmswap.errors import InternalError, StorageFailedError, VmmswapError
from vmmswap.failpoint import reach
from vmmswap.handoff.region import PAGE_SIZE
from vmmswap.linux import closing
from vmmswap.linux.files import file_id
from vmmswap.linux.process import is_alive
from vmmswap.log import fields
from vmmswap.monitor import backing, orphans
from vmmswap.monitor.engine_config import engine_config
from vmmswap.monitor.keep import fdstore, keeper
from vmmswap.monitor.keep.fdstore import FdStore
from vmmswap.monitor.keep.manifest import Manifest, ManifestFile, ProcessRecord, RegionRecord
from vmmswap.monitor.mappers import coverage, placement
from vmmswap.monitor.mappers.placement import joined
from vmmswap.monitor.process import Process
from vmmswap.monitor.vm import Vm

_log = logging.getLogger("vmmswap.recovery")

_MAX_INTERRUPTED = 3
_OF_THE_ENGINE = {
    *(fdstore.PAGE_MAP, fdstore.STORE, fdstore.WAKE, fdstore.MAILBOX, fdstore.PAGEMAP),
    *fdstore.TIERS,
}


@dataclass(frozen=True, slots=True)
class Found:
    """error: why the operation that was under way is not resumed."""

    vm: Vm
    connection: socket.socket | None
    last_job: Job
    error: VmmswapError | None


@dataclass(frozen=True, slots=True)
class _Orphan:
    """A child whose FORK event was the last one that the predecessor read. name: in the fd store, for now.
    parent: None if its parent is not one of the VM's processes.
    """

    name: str
    uffd: int
    parent: ProcessRecord | None


def is_needed(kept: dict[str, int]) -> bool:
    """True if a predecessor left a VM. Registration stores the manifest last."""
    return fdstore.MANIFEST in kept


def forget(kept: dict[str, int], store: FdStore) -> None:
    """Close, here and in the store, what a predecessor left that died while a VM registered."""
    for name, fd in kept.items():
        closing.close(fd)
        store.adopt(name)
        store.remove(name)


def peek(kept: dict[str, int]) -> Manifest:
    """Read a predecessor's record. StorageFailedError."""
    return ManifestFile(kept[fdstore.MANIFEST]).read()


def recover(kept: dict[str, int], store: FdStore, config: Config, swap_dir: Path) -> Found:
    """Serve the VM again. If this raises VmmswapError nothing is lost: the fds stay in the store. kept: fds
    by name, ours from here on; useless ones are closed, and taken out of the store.

    Before there is an event loop: this takes longer for a larger VM, and may wait for its processes or the
    disk.
    """
    for name, fd in kept.items():
        store.adopt(name, fd)
    saved = keeper.take_orphans(kept)
    vm, children = _rebuild(kept, saved, store, config, swap_dir)
    _keep_wake_record(vm, kept)
    for orphan in children:
        if orphan.parent is None:
            kept[orphan.name] = orphan.uffd  # useless
        else:
            _enter(vm, orphan, orphan.parent)
    found = _serve(vm.engine, kept)
    interrupted = vm.manifest.interrupted + 1 if found.last_job is not Job.NONE else 0
    vm.change(restarts=vm.manifest.restarts + 1, interrupted=interrupted, config=config.to_json())
    connection = _connection(kept)
    _drop_rest(vm, kept)
    vm.drop_unused_memfds()
    job = found.last_job.name.lower().replace("_", "-")
    _log.warning(
        "taken over from a monitor that ended: %d pages are out, %d processes, %s was under way",
        found.out_pages,
        len(vm.processes),
        "nothing" if found.last_job is Job.NONE else f"a {job}",
        extra=fields(
            "", message_ids.MONITOR_RESTARTED, out_pages=found.out_pages, restarts=vm.manifest.restarts
        ),
    )
    error = None
    if interrupted >= _MAX_INTERRUPTED:
        error = InternalError(
            f"{interrupted} monitors in a row died in a {job}: what is out is served, and nothing else is"
            " tried; see the journal, then call Enable or Disable"
        )
    return Found(vm, connection, found.last_job, error)


def _rebuild(
    kept: dict[str, int], saved: dict[str, int], store: FdStore, config: Config, swap_dir: Path
) -> tuple[Vm, list[_Orphan]]:
    """Make the VM with its memory and its processes, and list the children that are still to be entered."""
    file = ManifestFile(kept[fdstore.MANIFEST])
    manifest = file.read()
    vmm_key = manifest.vmm_key
    has_tiers = fdstore.TIERS[0] in kept
    stores = fdstore.TIERS[:2] if has_tiers else (fdstore.STORE,)
    of_private = (fdstore.MAILBOX, fdstore.PAGEMAP) if backing.of_record(manifest).vmm_moves else ()
    needed = (
        *(fdstore.PAGE_MAP, *stores, *of_private),
        *(fdstore.uffd_name(vmm_key), fdstore.pidfd_name(vmm_key)),
    )
    missing = [name for name in needed if name not in kept]
    if missing:
        raise StorageFailedError(
            f"the fd store has no {' and no '.join(missing)}: the VM's memory cannot be served"
        )
    engine = Engine(
        engine_config(
            config,
            store_of(kept) or swap_dir,
            backing.of_record(manifest),
            guest_bytes=sum(region.pages for region in manifest.regions) * PAGE_SIZE,
            has_tiers=has_tiers,
        ),
        page_map_fd=kept[fdstore.PAGE_MAP],
        store_fd=kept.get(fdstore.STORE),
        wake_fd=kept.get(fdstore.WAKE, -1),
        tier_fds=TierFds(*(kept.get(name, -1) for name in fdstore.TIERS)),
        mover=_mover(manifest, kept) if of_private else None,
    )
    if config.has_write_budget:
        engine.limit_writes(0)  # until the ledger is read: pages move to disk as soon as the engine starts
    vm = Vm(engine, manifest, file, store)
    if of_private:
        vm.mailbox = os.dup(kept[fdstore.MAILBOX])
    _add_memory(vm, kept)
    mapped = _mapped_now(vm)
    for record in manifest.processes:
        _add_process(vm, record, kept, mapped)
    return vm, [_orphan(vm, name, uffd) for name, uffd in saved.items()]


def store_of(kept: dict[str, int]) -> Path | None:
    """The store's file, which the limits are for: SwapDirectory= may be another one by now, or be gone."""
    fd = kept.get(fdstore.TIERS[2], kept.get(fdstore.STORE))
    return None if fd is None else Path(f"/proc/self/fd/{fd}")


def _serve(engine: Engine, kept: dict[str, int]) -> Recovered:
    """Take over the pages, and serve page faults from here on."""
    reach("recovery.pages")
    found = engine.recover()
    engine.start()
    reach("recovery.served")
    for name in _OF_THE_ENGINE & kept.keys():
        os.close(kept.pop(name))  # the engine has its own; close() may wait for the disk
    return found


def _keep_wake_record(vm: Vm, kept: dict[str, int]) -> None:
    """An older predecessor had none, and one that is damaged was replaced."""
    known = kept.get(fdstore.WAKE)
    if known is not None and file_id(known) == file_id(vm.engine.wake_fd):
        return
    if known is not None:
        vm.store.remove(fdstore.WAKE)
    vm.store.add(fdstore.WAKE, vm.engine.wake_fd)


def _add_memory(vm: Vm, kept: dict[str, int]) -> None:
    """Add all memory at its old page numbers, with gaps for regions that were removed."""
    numbers = vm.manifest.memfds
    for number in range(max(vm.manifest.files, max(numbers, default=-1) + 1)):
        fd = kept.get(fdstore.memfd_name(number))
        if fd is None or number not in numbers:
            vm.files.append(file_id(vm.file.fd))  # nothing of a VM's equals this one
            continue
        vm.memfds[number] = fd
        vm.files.append(file_id(fd))
    next_idx = 0
    for region in sorted(vm.manifest.regions, key=lambda item: item.page_idx):
        if region.page_idx > next_idx:
            vm.backing.add_gap(vm.engine, region.page_idx - next_idx)
        next_idx = _add_region(vm, region)


def _add_region(vm: Vm, region: RegionRecord) -> int:
    page_idx = vm.backing.add_region(
        vm.engine, vm.memfds, region.memfd, region.offset_bytes, region.pages * PAGE_SIZE
    )
    if page_idx != region.page_idx:
        raise StorageFailedError(f"the record of the VM is damaged: page {page_idx} is not {region.page_idx}")
    return page_idx + region.pages


def _mover(manifest: Manifest, kept: dict[str, int]) -> Mover:
    """If the VMM has ended, its pid may be another process's by now."""
    vmm = next((item for item in manifest.processes if item.key == manifest.vmm_key), None)
    pid = vmm.pid if vmm and is_alive(kept[fdstore.pidfd_name(vmm.key)]) else -1
    return Mover(pid, kept[fdstore.MAILBOX], kept[fdstore.PAGEMAP])


def _mapped_now(vm: Vm) -> coverage.Picture | None:
    """What the known processes map of the memory. The guest waits meanwhile. None if that cannot be told, or
    if nobody else could map it.
    """
    if not vm.backing.others_may_map:
        return None
    try:
        pids = {record.pid for record in vm.manifest.processes if record.pid}
        return coverage.look_at(coverage.question_of(vm), pids)
    except VmmswapError as error:
        _log.warning("cannot tell what is mapped now: %s", error.message)
        return None


def _add_process(
    vm: Vm, record: ProcessRecord, kept: dict[str, int], mapped: coverage.Picture | None
) -> None:
    uffd = kept.get(fdstore.uffd_name(record.key))
    if uffd is None:
        _log.error(
            "the userfaultfd of process %s is lost: the process has ended, or reads zeros",
            record.pid or "unknown",
        )
        return
    ranges = tuple(_still_there(vm, record, mapped))
    process_id = vm.engine.add_process(uffd, ranges)
    pidfd = kept.get(fdstore.pidfd_name(record.key), -1)
    pid = record.pid if pidfd >= 0 else 0
    process = Process(
        *(record.key, process_id, pid, pidfd, uffd, True, ranges),
        *(record.is_proven, record.dummy_page, record.is_forked),
    )
    vm.processes[process_id] = process
    with contextlib.suppress(VmmswapError):  # it has ended, or unmapped its page
        vm.register_dummy(process)


def _still_there(vm: Vm, record: ProcessRecord, mapped: coverage.Picture | None) -> list[Range]:
    """What the process had and still has. Something else may be mapped in the other places by now, and must
    not be filled with guest memory. A forked child's pid is a guess.
    """
    ranges = [Range(*item) for item in record.ranges if _is_in_a_region(vm, item[1])]
    if mapped is None or not record.pid or record.is_forked or record.pid in mapped.unreadable:
        return ranges
    own = [one.range for one in mapped.mapped if one.pid == record.pid]
    if not own and not coverage.shows_mappings(record.pid):
        return ranges
    return joined(placement.kept(ranges, own), {item.page_idx for item in vm.manifest.regions})


def _is_in_a_region(vm: Vm, page_idx: int) -> bool:
    """A predecessor of an older version may have died and left ranges of a removed region."""
    return any(0 <= page_idx - item.page_idx < item.pages for item in vm.manifest.regions)


def _orphan(vm: Vm, name: str, uffd: int) -> _Orphan:
    known = {item.key: item for item in vm.manifest.processes}
    known |= {item.key: item.record for item in vm.processes.values()}
    parent = orphans.parent_of(uffd, known.values(), vmm_registers=vm.backing.vmm_registers)
    return _Orphan(name, uffd, parent)


def _enter(vm: Vm, orphan: _Orphan, parent: ProcessRecord) -> None:
    """systemd stores no file twice, so remove the old name first; our keeper has the file until the new name
    is stored.
    """
    vm.store.remove(orphan.name)
    _log.warning(
        "a child that process %s forked when the monitor died is served", parent.pid or "(of unknown pid)"
    )
    vm.add_orphan(orphan.uffd, parent)


def _connection(kept: dict[str, int]) -> socket.socket | None:
    fd = kept.get(fdstore.CONNECTION)
    return None if fd is None else socket.socket(fileno=fd)


def _drop_rest(vm: Vm, kept: dict[str, int]) -> None:
    """Close leftovers: processes and memfds that were being removed. On a thread: with the last fd of a
    userfaultfd the kernel unregisters its memory, and waits for the process.
    """
    used = {fdstore.memfd_name(number) for number in vm.memfds} | {fdstore.MANIFEST, fdstore.CONNECTION}
    for process in vm.processes.values():
        used |= {fdstore.uffd_name(process.key), fdstore.pidfd_name(process.key)}
    rest = kept.keys() - used
    for name in rest:
        vm.store.remove(name)
    if rest:
        fds = [kept[name] for name in rest]
        threading.Thread(target=_close_all, args=(fds,), name="leftovers", daemon=True).start()


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
