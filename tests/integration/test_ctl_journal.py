# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces go into a real journal as the monitor sends them; `vmmswapctl trace` makes lines of it."""

import sys
from pathlib import Path

import pytest

from tests.support.machine import Machine
from vmmswap import trace_format as tf

ROOT = Path(__file__).parents[2]

# What runs inside the machine: one trace of `count` faults, sent as batches, some of them left out.
SEND = """
import sys
from systemd import journal
from vmmswap import trace_format as tf
vm, trace_id, count, left_out = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4].split(",")
faults = [tf.Fault(i * 50_000, (i * 7919 % 262144) << 12, i % 3) for i in range(count)]
header = tf.TraceHeader(1700000000000 + count, (tf.TraceRegion(0, 1 << 30),))
journal.send(**tf.header_fields(vm, trace_id, header))
for sequence, first in enumerate(range(0, count, tf.BATCH_FAULTS)):
    if str(sequence) not in left_out:
        journal.send(**tf.batch_fields(vm, trace_id, sequence, faults[first : first + tf.BATCH_FAULTS]))
"""


def lines(count: int) -> list[str]:
    header = tf.TraceHeader(1700000000000 + count, (tf.TraceRegion(0, 1 << 30),))
    faults = (tf.Fault(i * 50_000, (i * 7919 % 262144) << 12, i % 3) for i in range(count))
    return [tf.header_line(header), *map(tf.fault_line, faults)]


@pytest.fixture(scope="module")
def python() -> str:
    return f"cd {ROOT} && {sys.executable}"


def send(machine: Machine, python: str, *args: str, user: str | None = None) -> None:
    machine.sh(f"{python} - {' '.join(args)}", stdin=SEND, user=user)
    machine.run("journalctl", "--sync")


def trace(machine: Machine, python: str, *args: str):
    return machine.sh(f"{python} -m vmmswap.ctl.main trace {' '.join(args)}", check=False)


def test_the_newest_trace_comes_back_line_by_line(machine: Machine, python: str):
    send(machine, python, "web", "aa" * 16, "100", "-")
    send(machine, python, "web", "bb" * 16, "10000", "-")  # three batches, each far above journalctl's 4 KiB
    send(machine, python, "other", "cc" * 16, "5", "-")
    done = trace(machine, python, "export", "web", "--from", "journal")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == lines(10000)


def test_a_lost_batch_is_told_and_the_rest_exported(machine: Machine, python: str):
    send(machine, python, "lossy", "dd" * 16, "10000", "1")
    done = trace(machine, python, "export", "lossy")  # no file: the journal
    assert done.returncode == 1
    assert done.stderr.startswith("vmmswapctl: 1 batches of this trace are missing from the journal")
    everything = lines(10000)
    expected = everything[: 1 + tf.BATCH_FAULTS] + everything[1 + 2 * tf.BATCH_FAULTS :]
    assert done.stdout.splitlines() == expected


def test_entries_of_other_users_are_not_believed(machine: Machine, python: str):
    send(machine, python, "forged", "ee" * 16, "5", "-", user="nobody")
    done = trace(machine, python, "export", "forged", "--from", "journal")
    assert (done.returncode, done.stdout) == (1, "")
    assert "holds no page-fault trace of forged" in done.stderr


def test_a_reader_that_leaves(machine: Machine, python: str):
    send(machine, python, "long", "ff" * 16, "50000", "-")
    export = f"{python} -m vmmswap.ctl.main trace export long"
    command = f"{export} | head -1; echo $${{PIPESTATUS[0]}}"  # $$: systemd-run takes a single one itself
    done = machine.sh(command)
    assert done.stdout.splitlines() == [lines(50000)[0], "141"]
    assert done.stderr == ""
