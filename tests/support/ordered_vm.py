# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM's orders over a fake engine, and the transcript of what came of them.

A transcript has one line for each call of the engine that changes something ("engine ..."), each
StatusChanged on the bus ("bus STATE OPERATION ERROR"), each journal entry ("journal MESSAGE") and each change
of the record that a successor reads ("record NAME=VALUE"), in the order in which they were made.
"""

import collections
import dataclasses
import logging
import os
import re
from types import SimpleNamespace

from vmmswap.bus.interface import STATUS_CHANGED
from vmmswap.bus.manager import ManagerObject
from vmmswap.config import Config
from vmmswap.engine import EngineStats, Job, JobDone, Mode, TierFds
from vmmswap.errors import NoSuchVMError
from vmmswap.monitor.controller import Controller
from vmmswap.monitor.events import EventHandler, EventPump
from vmmswap.monitor.keep.fdstore import FdStore
from vmmswap.monitor.keep.manifest import Manifest
from vmmswap.monitor.operations import headroom, orders, starvation
from vmmswap.monitor.operations.headroom import Headroom
from vmmswap.monitor.operations.orders import Orders
from vmmswap.monitor.process import Process
from vmmswap.monitor.settings import Settings
from vmmswap.monitor.surroundings import Surroundings
from vmmswap.monitor.tracing import PageFaultLog
from vmmswap.monitor.vm import Vm
from vmmswap.monitor.write_budget import Place

TOTAL_PAGES = 100_000
_NONE = EngineStats(
    **{
        field.name: 0
        for field in dataclasses.fields(EngineStats)
        if field.name not in ("mode", "job", "tracking")
    },
    mode=Mode.NONE,
    job=Job.NONE,
    tracking=False,
)


class FakeEngine:
    """Does nothing but say what it was asked. Its jobs end when the test says so."""

    needs_count = False
    pin_check = ""

    store_fd = -1
    store_file_system = ""
    tier_fds = TierFds()
    written_bytes = 0

    def __init__(self, say):
        self._say = say
        self._is_retired = False
        self._stats = dataclasses.replace(_NONE, total_pages=TOTAL_PAGES, resident_pages=TOTAL_PAGES)
        self.events = collections.deque()
        self.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.fails = None  # what the next job that is started raises

    @property
    def page_map_fd(self):
        return self.event_fd  # any

    def limit_writes(self, _max_bytes):
        pass

    def set_stats(self, **values):
        self._stats = dataclasses.replace(self._stats, **values)

    def stats(self):
        self._called()
        return self._stats

    def activity(self):
        return (self.stats(),)

    @property
    def is_tracking(self):
        return self.stats().tracking

    def next_event(self):
        self._called()
        return self.events.popleft() if self.events else None

    def start_swap_out(self, options):
        drained = " drained by QMP" if options.pins and options.pins.qmp_drained else ""
        self._start(Job.SWAP_OUT, f"start swap-out{drained}")
        self.set_stats(tracking=True)

    def start_swap_in(self):
        self._start(Job.SWAP_IN, "start swap-in")

    def start_flush(self):
        self._start(Job.FLUSH, "start flush")

    def start_trim(self, _options):
        self._start(Job.TRIM, "start trim")

    def _start(self, job, text):
        self._called()
        if self.fails is not None:
            error, self.fails = self.fails, None
            raise error
        assert self._stats.job is Job.NONE, "one job at a time"
        self.set_stats(job=job)
        self._say(f"engine {text}")

    def cancel(self):
        self._called()
        self._say("engine cancel")

    def resume(self):
        self._called()
        self._say("engine resume")

    def forget_job(self):
        self._called()
        self._say("engine forget the predecessor's job")

    def set_budget(self, _pages):
        self._called()

    wake_fd = -1
    was_replaying = False
    wake_is_ordered = False

    def wake(self, *, is_ordered):
        self._called()
        self._say(f"engine wake{' by an order' if is_ordered else ''}")

    def cancel_wake(self):
        self._called()
        self._say("engine cancel the replay")

    wake_budget = None

    def set_wake_budget(self, pages):
        self._called()
        self.wake_budget = pages

    def settle_wake(self):
        self._called()
        self._say("engine settle")
        return True

    def housekeep(self):
        return False

    def retire(self):
        self._is_retired = True

    def _called(self):
        if self._is_retired:
            raise NoSuchVMError("the VM has ended")


_NEVER_THE_SAME = ("tables_before",)


class Record:
    """In place of the ManifestFile."""

    def __init__(self, say, manifest):
        self._say = say
        self._before = manifest

    def write(self, manifest):
        for field in dataclasses.fields(Manifest):
            value = getattr(manifest, field.name)
            if value != getattr(self._before, field.name) and field.name not in _NEVER_THE_SAME:
                self._say(f"record {field.name}={value}")
        self._before = manifest


class Checks:
    """refusal: what check_before_enable() raises. gate: what it waits for first."""

    def __init__(self, say):
        self._say = say
        self.refusal = None
        self.gate = None
        self.is_waiting = False

    async def check_before_enable(self):
        if self.gate is not None:
            self.is_waiting = True
            await self.gate.wait()
        if self.refusal is not None:
            raise self.refusal

    def check_before_exit(self):
        """Nothing is in the way."""


class Journal(logging.Handler):
    def __init__(self, say):
        super().__init__(logging.INFO)
        self._say = say

    def emit(self, record):
        self._say("journal " + re.sub(r"after \d+ ms", "after N ms", record.getMessage()))


class OrderedVm:
    """One VM as the bus has it. The engine tells it of something by tells()."""

    def __init__(self, monkeypatch, tmp_path, *, error=None, manifest=None, out_pages=0):
        self.transcript = []
        self.room_bytes = 1 << 40
        for module in (headroom, starvation):
            monkeypatch.setattr(module, "look", lambda _pids, _mounts: Headroom(self.room_bytes, "a limit"))
        for name in ("_LOW_MEMORY_RETRY_S", "_FAILED_STOP_RETRY_S"):
            monkeypatch.setattr(orders, name, 0.001)
        self.engine = FakeEngine(self.say)
        if out_pages:
            self.engine.set_stats(tracking=True, swap_pages=out_pages, resident_pages=TOTAL_PAGES - out_pages)
        self.checks = Checks(self.say)
        self.journal = Journal(self.say)
        logger = logging.getLogger("vmmswap")
        monkeypatch.setattr(logger, "level", logging.INFO)
        logger.addHandler(self.journal)
        settings = Settings("web", tmp_path / "absent.conf", Config(), {})
        self.controller = Controller("web", settings, lambda reason: self.say(f"ends: {reason}"))
        self.around = Surroundings(
            settings,
            PageFaultLog(("file",), tmp_path),
            Place(tmp_path / "web.written", tmp_path),
            barrier=self._barrier,
            on_change=self.controller.changed,
            on_end=self.close,
        )
        manifest = manifest or Manifest(name="web", wants_out=out_pages > 0)
        self.vm = Vm(self.engine, manifest, Record(self.say, manifest), FdStore(None))
        # An fd that is no userfaultfd, so that nothing says that its process has gone.
        self.vm.processes[0] = Process(0, 0, os.getpid(), -1, self.engine.event_fd, False, ())
        self.serve(error)
        self.bus = ManagerObject(self.controller, None, self._emit)

    def serve(self, error):
        """Only what gives and carries out orders: no processes are watched."""
        self.orders = Orders(self.vm, self.around, self.checks, self._released, error=error)
        self.controller.served = SimpleNamespace(
            vm=self.vm,
            orders=self.orders,
            status=self.orders.status,
            processes=None,
            writes=SimpleNamespace(ready=self._barrier),
        )
        handler = EventHandler(self.vm, None, self.orders, self.controller.changed)
        self.pump = EventPump(self.engine, handler, handler.flush)
        self.pump.start()

    async def _barrier(self):
        """There is no fd store."""

    def say(self, line):
        self.transcript.append(line)

    def said(self):
        """What was said since the last call."""
        lines, self.transcript = self.transcript, []
        return lines

    def _emit(self, _path, _interface, member, _signature, body):
        if member == STATUS_CHANGED.name:
            values = {key: variant.value for key, variant in body[0].items()}
            self.say(f"bus {values['State']} {values['Operation']} {values['Error']}".rstrip())

    def _released(self, reason):
        self.say(f"released: {reason}")
        self.close()

    def tells(self, event, **stats):
        """The engine has something to tell; stats: its counters by then."""
        if isinstance(event, JobDone):
            self.engine.set_stats(job=Job.NONE)
        self.engine.set_stats(**stats)
        self.engine.events.append(event)
        self.pump.take()

    def close(self):
        """As ServedVm.close() does it."""
        if self.controller.served is not None:
            self.pump.stop()
            self.orders.close()
            self.engine.retire()
            self.controller.served = None
            self.controller.changed()

    def end(self):
        """Of the test."""
        self.close()
        logging.getLogger("vmmswap").removeHandler(self.journal)
        os.close(self.engine.event_fd)
