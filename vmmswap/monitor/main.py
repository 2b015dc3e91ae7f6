# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswap-monitor's command line."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from systemd.daemon import listen_fds_with_names

from vmmswap import config, log, message_ids, streams
from vmmswap.attach.options import Options
from vmmswap.config import KEYS, Config
from vmmswap.config_checks import ConfigError, uid_of
from vmmswap.config_listing import listing
from vmmswap.errors import (
    InternalError,
    InvalidNameError,
    NotSupportedError,
    StorageFailedError,
    VmmswapError,
)
from vmmswap.file_system import ON_RAM, kind_of
from vmmswap.handoff.refusal import refuse_waiting
from vmmswap.linux.userfaultfd import open_userfaultfd
from vmmswap.monitor import own_memory, recovery, service
from vmmswap.monitor.command import EXIT_USAGE, PROGRAM, Command
from vmmswap.monitor.keep import fdstore, keeper, pending
from vmmswap.monitor.monitor import Monitor
from vmmswap.monitor.settings import Settings
from vmmswap.monitor.setup import Setup
from vmmswap.names import LOG_DIR, STATE_DIR, check_name
from vmmswap.region_text import parse_region

# The unit restarts us after EXIT_FAILURE and not after the others: the last try would lose what the fd store
# keeps. So while it keeps a VM we exit with EXIT_FAILURE only.
EXIT_FAILURE = 1
EXIT_UNAVAILABLE = 69  # EX_UNAVAILABLE
EXIT_BUG = 70  # EX_SOFTWARE
EXIT_CONFIG = 78  # EX_CONFIG

_MAX_PATH_BYTES = 107  # of a socket: sun_path


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the monitor and end the process."""
    streams.open_closed()
    options = streams.parsed(PROGRAM, lambda: _command(sys.argv[1:] if arguments is None else arguments))
    if options.check_config:
        raise SystemExit(_check_config(options.name, options.config))
    kept = _given_fds() | keeper.inherited()
    has_vm = _has_vm(kept)
    # Duplicate the listening socket: it is closed by the time that we know why we fail.
    waiting = os.dup(kept[fdstore.LISTEN]) if fdstore.LISTEN in kept and not has_vm else None
    try:
        status = _run(options, kept)
    except Exception as error:
        known = error if isinstance(error, VmmswapError) else _bug(error)
        status = EXIT_FAILURE if has_vm else _exit_status_of(known)
        _fail(known, waiting)
    # A thread may wait for ever for a lock of a VMM that hangs, and a normal exit would wait for that thread.
    logging.shutdown()
    sys.stderr.flush()
    os._exit(status)


def _has_vm(kept: dict[str, int]) -> bool:
    """True if a guest that has registered, or is about to, waits for us."""
    return recovery.is_needed(kept) or pending.is_needed(kept)


def _check_config(name: str | None, path: Path | None) -> int:
    """Print the settings that a monitor would start with. All files are checked, whatever the name."""
    try:
        paths = None if path is None else [path]
        found, origins = config.load_with_origins("" if name is None else check_name(name), paths)
        if found.owner:
            uid_of(found.owner)
    except VmmswapError as error:
        print(f"{PROGRAM}: {error.message}", file=sys.stderr)
        return _exit_status_of(error)
    if name is not None:
        print("\n".join(listing(Settings(name, path, found, origins).rows())))
    return 0


def _bug(error: Exception) -> InternalError:
    logging.getLogger("vmmswap").error("bug in the monitor", exc_info=error)
    return InternalError(f"the monitor failed because of a bug in vmmswap, {error!r}: see its journal")


def _exit_status_of(error: VmmswapError) -> int:
    match error:
        case ConfigError():
            return EXIT_CONFIG
        case InvalidNameError():
            return EXIT_USAGE
        case InternalError():
            return EXIT_BUG
    return EXIT_UNAVAILABLE


def _fail(error: VmmswapError, waiting: int | None) -> None:
    """Report the reason on one line: in the unit's status, in the journal, and to all that wait at our
    socket.
    """
    service.status(error.message)
    if log.under_journal():
        message_id = message_ids.CONFIGURATION_ERROR if isinstance(error, ConfigError) else ""
        logging.getLogger("vmmswap").error("%s", error.message, extra=log.fields("", message_id))
    else:
        print(f"{PROGRAM}: {error.message}", file=sys.stderr)
    if waiting is not None:
        refuse_waiting(waiting, error)


def _command(words: list[str]) -> Command:
    """What the command line says. The unit's own, `-- NAME`, needs no parser, which is large."""
    if len(words) == 2 and words[0] == "--":
        return Command(words[1])
    from vmmswap.monitor import command_line  # noqa: PLC0415

    return command_line.parse(words)


def _run(options: Command, given: dict[str, int]) -> int:
    journal = log.set_up(PROGRAM, options.name or "", logging.DEBUG if options.debug else logging.INFO)
    name = check_name(options.name or "")
    logging.captureWarnings(True)
    logging.getLogger("vmmswap.handoff").addFilter(log.RateLimit())
    service.forbid_core_dumps()  # before there is a keeper
    own_memory.use_one_arena()
    fd_store = fdstore.has_fd_store()
    helper = _start_keeper(given, fd_store=fd_store)
    settings = _settings(name, options.config, given)
    own_memory.lock()
    setup = Setup(
        name=name,
        config=settings.current,
        settings=settings,
        config_path=options.config,
        swap_dir=_swap_dir(options.swap_dir, settings.current, name),
        state_dir=_state_dir(options.swap_dir, name),
        log_dir=options.log_dir or _directory_from("LOGS_DIRECTORY", LOG_DIR / name),
        bus=options.bus,
        listener=None,
        kept=given,
        starts_on_demand=fdstore.LISTEN in given,
        fd_store=fd_store,
        keeper=helper,
        journal=journal,
    )
    has_vm = _has_vm(given)
    if not has_vm:
        if settings.current.has_disk_tier:
            _check_swap_dir(setup.swap_dir)
        os.close(open_userfaultfd())
    if not setup.fd_store:
        logging.getLogger("vmmswap").warning(
            "no service manager keeps fds for us: if the monitor is killed, %s",
            "its keeper takes its place" if helper else "the guest hangs where memory is out",
        )
    if options.attach is not None and not has_vm:
        from vmmswap.attach.target import open_target  # noqa: PLC0415  only attached VMs need it

        setup.attach = open_target(options.attach)
        setup.attach_options = Options(tuple(map(parse_region, options.region)), options.force)
        setup.attach_qmp = options.qmp
    may_lack = setup.attach is not None or has_vm
    with _listener(options.listen, given.pop(fdstore.LISTEN, None), may_lack=may_lack) as listener:
        setup.listener = listener
        own_memory.settle()
        loop = asyncio.new_event_loop()  # never closed: main() ends the process
        asyncio.set_event_loop(loop)
        return _serve(loop, Monitor(setup))


def _serve(loop: asyncio.AbstractEventLoop, monitor: Monitor) -> int:
    """The exit status. A monitor that has served a VM is restarted, whatever ended it."""
    try:
        return loop.run_until_complete(monitor.run())
    except Exception:
        if not monitor.has_served:
            raise
        logging.getLogger("vmmswap").exception("bug in the monitor")
        return EXIT_FAILURE


def _start_keeper(given: dict[str, int], *, fd_store: bool) -> keeper.Keeper | None:
    """Before any thread is started."""
    helper = keeper.Keeper(os.environ["NOTIFY_SOCKET"] if fd_store else None)
    for fd_name, fd in given.items():
        helper.keep(fd_name, fd)
    try:
        pid = helper.start()
    except OSError as error:
        logging.getLogger("vmmswap").warning(
            "no keeper (%s): a child that is forked while the monitor is killed reads zeros", error.strerror
        )
        return None
    logging.getLogger("vmmswap").debug("the keeper is process %d", pid)
    return helper


def _given_fds() -> dict[str, int]:
    """The fds that systemd passed, by name. Of two fds with the same name one is closed."""
    found: dict[str, int] = {}
    for fd, name in listen_fds_with_names().items():
        os.set_inheritable(fd, False)
        if name in found:
            os.close(fd)
        else:
            found[name] = fd
    return found


def _settings(name: str, path: Path | None, kept: dict[str, int]) -> Settings:
    """While memory is out, use the last good configuration rather than none."""
    try:
        return Settings(name, path, *config.load_with_origins(name, None if path is None else [path]))
    except ConfigError as error:
        if not recovery.is_needed(kept):
            raise
        logging.getLogger("vmmswap").error(
            "%s; using the last good configuration",
            error.message,
            extra=log.fields("", message_ids.CONFIGURATION_ERROR),
        )
        last_good = Config.from_json(recovery.peek(kept).config)
        return Settings(name, path, last_good, {key.attribute: "last good configuration" for key in KEYS})


def _directory_from(variable: str, default: Path) -> Path:
    """systemd's StateDirectory= and the like: absolute paths, separated by colons."""
    first = os.environ.get(variable, "").split(":")[0]
    return Path(first) if first else default


def _swap_dir(option: Path | None, settings: Config, name: str) -> Path:
    if option is not None:
        return option
    if settings.swap_directory:
        return Path(settings.swap_directory)
    return _directory_from("STATE_DIRECTORY", STATE_DIR / name)


def _state_dir(swap_dir: Path | None, name: str) -> Path:
    """Of a monitor that systemd has not started: beside the swap file."""
    return _directory_from("STATE_DIRECTORY", STATE_DIR / name if swap_dir is None else swap_dir)


def _check_swap_dir(path: Path) -> None:
    """StorageFailedError or NotSupportedError unless an unnamed file can be made there."""
    try:
        fd = os.open(path, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        raise StorageFailedError(
            f"the swap directory {path} does not exist: make it, or give --swap-dir"
        ) from None
    except NotADirectoryError:
        raise StorageFailedError(f"the swap directory {path} is not a directory") from None
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR):
            raise NotSupportedError(
                f"the file system of the swap directory {path} has no unnamed files (O_TMPFILE): use ext4,"
                " xfs or btrfs"
            ) from None
        raise StorageFailedError(
            f"cannot make a file in the swap directory {path}: {error.strerror}"
        ) from None
    kind = kind_of(fd)
    os.close(fd)
    if kind in ON_RAM:
        logging.getLogger("vmmswap").warning(
            "the swap directory %s is on %s: what is swapped out stays on RAM, so no memory is gained."
            " Set SwapDirectory= to a directory on a disk",
            path,
            kind,
        )


@contextlib.contextmanager
def _listener(path: Path | None, given: int | None, *, may_lack: bool) -> Iterator[socket.socket | None]:
    if given is not None:
        with socket.socket(fileno=given) as listener:
            yield listener
        return
    if path is None and may_lack:
        yield None
        return
    if path is None:
        raise StorageFailedError(
            "no socket to listen on: start vmmswap@NAME.socket, which passes one, or give --listen PATH"
        )
    try:
        listener = _bind(path)
    except StorageFailedError as error:
        if not may_lack:
            raise
        logging.getLogger("vmmswap").error("%s; the VM that is registered is served", error.message)
        yield None
        return
    with listener:
        inode = path.stat().st_ino
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if path.stat().st_ino == inode:
                    path.unlink()


def _bind(path: Path) -> socket.socket:
    """Listen at the path, and replace a socket that nobody listens on any more."""
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise StorageFailedError(f"--listen {path}: a socket's path has at most {_MAX_PATH_BYTES} bytes")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o117)
    try:
        if _is_dead_socket(path):
            path.unlink()
        listener.bind(os.fspath(path))
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise StorageFailedError(f"cannot listen on {path}: {error.strerror}") from None
    finally:
        os.umask(before)
    return listener


def _is_dead_socket(path: Path) -> bool:
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


if __name__ == "__main__":
    main()
