# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration: /etc/vmmswap.conf and /etc/vmmswap.conf.d/*.conf, or what --config names.

INI with systemd-style keys. `[Swap]` is for all VMs; `[VM NAME]` is for one VM and overrides `[Swap]`,
wherever it stands. Files are read in the order of their names; of two assignments in a section the later
one counts. An empty value restores the default. `KEYS` is the table of all keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from vmmswap import config_values as values
from vmmswap.config_checks import ConfigError, check_tiers
from vmmswap.errors import InvalidNameError
from vmmswap.names import check_name

FILE = Path("/etc/vmmswap.conf")
DROP_IN_DIR = Path("/etc/vmmswap.conf.d")

_SECTION = re.compile(r"\[(?P<title>[^\]]*)\]")


Origins = dict[str, str]  # by attribute of Config: FILE:LINE
_Section = dict[
    str, tuple[Any, str]
]  # by attribute: the value, None for the default again, and where it stands
DEFAULT_ORIGIN = "default"


def _key(name: str, kind: str, parse: Callable[[str], Any], text: str, default: str | float) -> Any:  # noqa: ANN401  what field() returns
    return field(default=default, metadata={"key": name, "kind": kind, "parse": parse, "help": text})


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one VM. Each field's metadata has its key, the kind of its value and its help text."""

    mode: str = _key(
        "Mode",
        "auto, live, freeze",
        values.one_of("auto", "live", "freeze"),
        "How the guest is kept from changing memory while it is being stored. live: memory is"
        " write-protected window by window while the guest runs. freeze: the VM's processes are stopped."
        " auto: live where the kernel can, else freeze.",
        "auto",
    )
    max_passes: int = _key(
        "MaxPasses",
        "count from 1",
        values.count(1, 1000),
        "How many times a swap-out walks over guest memory. Each further pass takes pages that were in use"
        " before.",
        1,
    )
    until_resident_pages: int = _key(
        "UntilResidentPages",
        "pages",
        values.count(0, (1 << 48) - 1),
        "Make no further pass once this many pages or fewer are resident.",
        0,
    )
    fault_threads: int = _key(
        "FaultThreads",
        "count",
        values.count(0, 16),
        "Threads that serve page faults; beyond 4, they sleep until faults queue up."
        " 0: one for each CPU, at most 16.",
        0,
    )
    spin_us: int = _key(
        "SpinUSec",
        "time span, in microseconds without a unit",
        values.span(1, 1_000_000),
        "How long a fault thread polls for the next fault before it sleeps. This trades CPU time for"
        " latency.",
        0,
    )
    workers: int = _key(
        "Workers",
        "count from 1",
        values.count(1, 16),
        "Threads that do the work of a swap-out. A swap-in has twice as many: each waits for the disk for as"
        " long as it works.",
        3,
    )
    freeze_timeout_s: float = _key(
        "FreezeTimeoutSec",
        "time span, in seconds without a unit",
        values.seconds,
        "Abort a freeze unless all threads of the VM stop within this time.",
        10.0,
    )
    freeze_limit_s: float = _key(
        "FreezeLimitSec",
        "time span, in seconds without a unit",
        values.seconds,
        "End a freeze after this time and let the VM run again. Pages that are not out by then stay"
        " resident, and State is Failed. Call Enable again to take the rest.",
        60.0,
    )
    swap_outs_max: int = _key(
        "SwapOutsMax",
        "count",
        values.count(0, 1024),
        "How many swap-outs may run on the host at a time; the others wait, and Queued is true. Swap-ins and"
        " page faults never wait for them. 0: any number.",
        4,
    )
    swap_directory: str = _key(
        "SwapDirectory",
        "absolute path",
        values.absolute_path,
        "The directory of the swap file. The file has no name, so nothing shows in the directory. The file"
        " system must support O_TMPFILE. The option --swap-dir overrides this key. Default: the unit's state"
        " directory, /var/lib/vmmswap/NAME.",
        "",
    )
    disk_tier_max: str = _key(
        "DiskTierMax",
        "bytes, with K, M, G, T or %, or infinity",
        values.tier_size,
        "The most disk space that one VM's swapped-out memory may take. A percentage is of the swap"
        " directory's file system. A swap-out that reaches the limit ends, and the rest stays"
        " on RAM. infinity: all but what DiskKeepFree= leaves. 0: nothing goes to disk, and no swap directory"
        " is needed; a VM that registered so keeps to RAM for as long as it lives.",
        values.INFINITY,
    )
    write_budget_per_day: str = _key(
        "WriteBudgetPerDay",
        "bytes, with K, M, G, T or %, or infinity",
        values.budget,
        "The most that may be written to disk for one VM in any 24 hours. A percentage is of the size of the"
        " swap directory's file system. A swap-out that reaches the limit ends, and the rest stays on RAM."
        " What was written is in the ledger NAME.written in the VM's state directory. If that is missing or"
        " damaged, as when a VM registers for the first time, the budget counts as used up, and comes back"
        " hour by hour within a day.",
        values.INFINITY,
    )
    ram_tier_max: str = _key(
        "RamTierMax",
        "bytes, with K, M, G, T or %",
        values.ram_tier_size,
        "The most RAM that one VM's swapped-out memory may take, compressed. A percentage is of the VM's"
        " memory, and at least one segment, 2M. What exceeds it goes to disk, compressed and encrypted."
        " 0: pages use RAM only on their way to disk. With DiskTierMax=0 nothing goes to disk, and a swap-out"
        " that reaches this limit leaves the rest as it is. With RamTierMax=0, DiskTierCompression=none and"
        " Encryption=no there are no tiers: pages go to a plain swap file, one by one, as they are. A VM has"
        " what was set when it registered. VMs from a snapshot do not use this key.",
        "25%",
    )
    ram_tier_age_s: float = _key(
        "RamTierAgeSec",
        "seconds",
        values.seconds,
        "Compressed pages move from RAM to disk after this time.",
        600.0,
    )
    ram_tier_compression: str = _key(
        "RamTierCompression",
        "lz4, none",
        values.one_of("lz4", "none"),
        "How pages are compressed on RAM.",
        "lz4",
    )
    disk_tier_compression: str = _key(
        "DiskTierCompression",
        "lz4, none",
        values.one_of("lz4", "none"),
        "How pages are compressed on disk. Pages go to disk as they are on RAM, so this differs from"
        " RamTierCompression= only with RamTierMax=0. Default: as RamTierCompression=.",
        "",
    )
    encryption: str = _key(
        "Encryption",
        "yes, no",
        values.one_of("yes", "no"),
        "Encrypt what goes to disk (AES-256-GCM). Each VM has a key of its own, which exists only in"
        " memory. A VM keeps the setting that it registered with.",
        "yes",
    )
    disk_keep_free: str = _key(
        "DiskKeepFree",
        "bytes, with K, M, G, T or %",
        values.size,
        "How much of a file system stays free for others: that of the swap directory, and that of"
        " page_fault.log. Sizes are given as for DiskTierMax=. Default: 5%, at most 4G.",
        "",
    )
    page_fault_log: str = _key(
        "PageFaultLog",
        "journal, file, both",
        values.one_of("journal", "file", "both"),
        "Where page faults are logged. Default: the journal; if systemd did not start the monitor, the file"
        " page_fault.log in the log directory.",
        "",
    )
    pin_check: str = _key(
        "PinCheck",
        "auto, bpf, collapse, qmp, settle, off",
        values.one_of("auto", "bpf", "collapse", "qmp", "settle", "off"),
        "How to find pages that a device or the kernel holds for I/O; such pages must stay on RAM. auto"
        " takes the first of these that works: bpf, collapse, qmp, the VMM's promise, and settle if"
        " PinSettleMSec= is set. qmp pauses the VM until its I/O has ended; the VMM must have given a QMP"
        " socket, and Mode=freeze excludes it. settle only waits and hopes. off is for guests whose memory"
        " nothing can hold.",
        "auto",
    )
    pin_settle_ms: int = _key(
        "PinSettleMSec",
        "time span, in milliseconds without a unit",
        values.span(1000, 600_000),
        "How long the check settle waits for I/O to end. 0: PinCheck=auto never uses settle.",
        0,
    )
    wake_prefetch: str = _key(
        "WakePrefetch",
        "yes, no",
        values.one_of("yes", "no"),
        "When page faults say that the guest wakes up, bring back what earlier wake-ups touched, ahead of"
        " further faults. no: only Wake() does.",
        "yes",
    )
    fault_around: str = _key(
        "FaultAround",
        "0, or bytes from 8K to 2M, a power of two",
        values.window,
        "While a guest wakes up, bring the neighbours of each page fault back as well, after it was answered:"
        " up to an aligned block of this size. The block grows while what it brings is used, and shrinks to"
        " nothing when not. 0: each page comes by its own page fault.",
        "0",
    )
    idle_set_max: str = _key(
        "IdleSetMax",
        "bytes, with K, M, G, T or %",
        values.size,
        "The most memory that a swap-out leaves resident because the guest touches it even while it is idle,"
        " within a minute of each swap-out. A percentage is of the VM's memory. 0: all goes out each time.",
        "4M",
    )
    handoff_timeout_s: float = _key(
        "HandoffTimeoutSec",
        "time span, in seconds without a unit",
        values.seconds,
        "How long a VMM may take after it has connected to send its message, and then to take the reply.",
        10.0,
    )
    idle_exit_s: float = _key(
        "IdleExitSec",
        "time span, in seconds without a unit",
        values.seconds_or_never,
        "End a monitor that has had neither a VM nor a connection for this long, if systemd holds its"
        " socket. The next connection starts it again. 0: never.",
        60.0,
    )
    owner: str = _key(
        "Owner",
        "user name or uid",
        values.user,
        "The user whose VM this is. Only this user and root may hand the VM over, prepare its socket or"
        " attach under its name. The polkit actions for a VM's own user apply to this user. If the key is"
        " not set, the name belongs to the user for whom its socket was prepared. If the administrator"
        " started the socket, it belongs to the first member of the group vmmswap who hands a VM over.",
        "",
    )
    max_vms_per_user: int = _key(
        "MaxVMsPerUser",
        "count",
        values.count(0, 100_000),
        "How many sockets and attached VMs a user other than root may have at a time. Only the value in"
        " [Swap] counts.",
        32,
    )
    snapshot_file: str = _key(
        "SnapshotFile",
        "absolute path",
        values.absolute_path,
        "The memory file of the snapshot that a Firecracker VM is restored from. Firecracker's message is"
        " refused unless this key is set. Only root, the user in Owner= and the user who owns the file may"
        " read it this way. The key is read at each hand-off. Do not change the file while a VM is served"
        " from it.",
        "",
    )

    @property
    def is_plain(self) -> bool:
        """True if nothing is left for the tiers to do: pages go to a plain swap file as they are."""
        return values.is_nothing(self.ram_tier_max) and self.compression == "none" and self.encryption == "no"

    @property
    def has_disk_tier(self) -> bool:
        """False if nothing of the VM goes to disk."""
        return not values.is_nothing(self.disk_tier_max)

    @property
    def compression(self) -> str:
        """Of a VM with tiers: lz4, none."""
        return self.disk_tier_compression or self.ram_tier_compression

    @property
    def has_write_budget(self) -> bool:
        """False if any number of bytes may be written to disk."""
        return self.write_budget_per_day not in ("", values.INFINITY)

    @property
    def may_drain(self) -> bool:
        """True if the VMM may be asked by QMP to end its I/O. A frozen one could not answer."""
        return self.pin_check in ("auto", "qmp") and self.mode != "freeze"

    def to_json(self) -> dict[str, Any]:
        """All settings by field name, for a successor that finds the files spoilt."""
        return asdict(self)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Self:
        """From to_json(), also that of another version: settings unknown here are left out."""
        known = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in saved.items() if name in known})


# What operations/options.py, wake_ups.py and write_budget.py use: all else is built into what serves a VM
# when that registers.
_RELOADED = frozenset(
    {
        "mode",
        "max_passes",
        "until_resident_pages",
        "freeze_timeout_s",
        "freeze_limit_s",
        "pin_check",
        "pin_settle_ms",
        "wake_prefetch",
        "idle_set_max",
        "write_budget_per_day",
    }
)


@dataclass(frozen=True, slots=True)
class Key:
    """One row of the table of keys. `default` as it would be written in a file."""

    name: str
    attribute: str
    kind: str
    default: str
    help: str
    parse: Callable[[str], Any]
    may_reload: bool  # takes effect at run time, from the next swap-out on

    def text(self, value: Any) -> str:  # noqa: ANN401  the value of any key
        """The value as it would be written in a file."""
        return f"{value:g}" if isinstance(value, float) else str(value)


KEYS: tuple[Key, ...] = tuple(
    Key(
        item.metadata["key"],
        item.name,
        item.metadata["kind"],
        f"{item.default:g}" if isinstance(item.default, float) else str(item.default),
        item.metadata["help"],
        item.metadata["parse"],
        item.name in _RELOADED,
    )
    for item in fields(Config)
)
_BY_NAME = {key.name: key for key in KEYS}


def files() -> list[Path]:
    """The host's configuration files in the order in which they are read."""
    return [path for path in (FILE, *sorted(DROP_IN_DIR.glob("*.conf"))) if path.is_file()]


def load(name: str, paths: Iterable[Path] | None = None) -> Config:
    """The settings of the VM `name`. Raises ConfigError. paths None: the host's files, if there are any."""
    return load_with_origins(name, paths)[0]


def load_with_origins(name: str, paths: Iterable[Path] | None = None) -> tuple[Config, Origins]:
    """The same, and where each value stands that is not the default."""
    for_all: _Section = {}
    for_one: _Section = {}
    for path in files() if paths is None else paths:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(f"{path}: cannot be read: {reason}") from None
        _read(path, text, name, for_all, for_one)
    found = for_all | for_one
    given = {attribute: value for attribute, (value, _) in found.items() if value is not None}
    settings = Config(**given)
    origins = {attribute: found[attribute][1] for attribute in given}
    check_tiers(settings, origins)
    return settings, origins


def _read(path: Path, text: str, name: str, for_all: _Section, for_one: _Section) -> None:
    section: _Section | None = None
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        try:
            if match := _SECTION.fullmatch(line):
                section = _section(match["title"], name, for_all, for_one)
            else:
                _assign(line, section, f"{path}:{number}")
        except (ValueError, InvalidNameError) as error:
            raise ConfigError(f"{path}:{number}: {error}") from None


def _section(title: str, name: str, for_all: _Section, for_one: _Section) -> _Section:
    if title == "Swap":
        return for_all
    kind, _, vm = title.partition(" ")
    if kind != "VM":
        raise ValueError(f"[{title}] is not a section: use [Swap] or [VM NAME]")
    return for_one if check_name(vm.strip()) == name else {}


def _assign(line: str, section: _Section | None, origin: str) -> None:
    name, equals, text = (part.strip() for part in line.partition("="))
    if not equals:
        raise ValueError(f"{line!r} is not of the form Key=value")
    if section is None:
        raise ValueError(f"{name}= stands before the first section: begin with [Swap] or [VM NAME]")
    key = _BY_NAME.get(name)
    if key is None:
        raise ValueError(f"{name!r} is not a key; there are {', '.join(_BY_NAME)}")
    try:
        section[key.attribute] = (key.parse(text) if text else None, origin)
    except ValueError as error:
        raise ValueError(f"{name}={text}: {error}") from None
