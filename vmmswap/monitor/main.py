# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswap-monitor's command line.

A successor's guest waits for what is imported here: what may come later is imported in start.py, or where it
is needed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

from systemd.daemon import listen_fds_with_names

from vmmswap import config, log, message_ids, streams
from vmmswap.config import KEYS, Config
from vmmswap.config_checks import ConfigError
from vmmswap.errors import InternalError, VmmswapError
from vmmswap.monitor import own_memory, recovery, service, signals
from vmmswap.monitor.command import EXIT_FAILURE, PROGRAM, Command, exit_status_of
from vmmswap.monitor.keep import fdstore, keeper
from vmmswap.monitor.settings import Settings
from vmmswap.monitor.setup import Setup
from vmmswap.names import LOG_DIR, STATE_DIR, check_name


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the monitor and end the process."""
    streams.open_closed()
    options = streams.parsed(PROGRAM, lambda: _command(sys.argv[1:] if arguments is None else arguments))
    if options.check_config:
        from vmmswap.monitor.check_config import check_config  # noqa: PLC0415

        raise SystemExit(check_config(options.name, options.config))
    kept = _given_fds() | keeper.inherited()
    has_vm = fdstore.has_vm(kept)
    if has_vm:
        signals.hold()  # a stop that came before the VM is served would leave its guest with zeros
    # Duplicate the listening socket: it is closed by the time that we know why we fail.
    waiting = os.dup(kept[fdstore.LISTEN]) if fdstore.LISTEN in kept and not has_vm else None
    try:
        status = _run(options, kept)
    except Exception as error:
        known = error if isinstance(error, VmmswapError) else _bug(error)
        status = EXIT_FAILURE if has_vm else exit_status_of(known)
        _fail(known, waiting)
    # A thread may wait for ever for a lock of a VMM that hangs, and a normal exit would wait for that thread.
    logging.shutdown()
    sys.stderr.flush()
    os._exit(status)


def _bug(error: Exception) -> InternalError:
    logging.getLogger("vmmswap").error("bug in the monitor", exc_info=error)
    return InternalError(f"the monitor failed because of a bug in vmmswap, {error!r}: see its journal")


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
        from vmmswap.handoff.refusal import refuse_waiting  # noqa: PLC0415

        refuse_waiting(waiting, error)


def _command(words: list[str]) -> Command:
    """What the command line says. The unit's own, `-- NAME`, needs no parser, which is large."""
    if len(words) == 2 and words[0] == "--":
        return Command(words[1])
    from vmmswap.monitor import command_line  # noqa: PLC0415

    return command_line.parse(words)


def _run(options: Command, given: dict[str, int]) -> int:
    """Serve the VM that a predecessor left before all else: its guest waits."""
    journal = log.set_up(PROGRAM, options.name or "", logging.DEBUG if options.debug else logging.INFO)
    name = check_name(options.name or "")
    logging.captureWarnings(True)
    service.forbid_core_dumps()  # before there is a keeper
    own_memory.use_one_arena()
    fd_store = fdstore.has_fd_store()
    helper = _start_keeper(given, fd_store=fd_store)
    settings = _settings(name, options.config, given)
    own_memory.lock()
    listener = given.pop(fdstore.LISTEN, None)
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
        starts_on_demand=listener is not None,
        store=fdstore.FdStore(service.manager() if fd_store else None, helper),
        journal=journal,
    )
    with contextlib.ExitStack() as meanwhile:
        if recovery.is_needed(given):
            meanwhile.enter_context(service.asking_for_time())
            with own_memory.growing_with_the_vm():
                setup.found = recovery.recover(given, setup.store, settings.current, setup.swap_dir)
            setup.turn.wait(setup.found.vm.engine.event_fd)
        if not fd_store:
            logging.getLogger("vmmswap").warning(
                "no service manager keeps fds for us: if the monitor is killed, %s",
                "its keeper takes its place" if helper else "the guest hangs where memory is out",
            )
        # All that may wait is loaded now: where many start, that takes long, and a stop waits for it.
        from vmmswap import without_tls  # noqa: F401, PLC0415
        from vmmswap.monitor import start  # noqa: PLC0415

    return start.run(setup, options, listener)


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


if __name__ == "__main__":
    main()
