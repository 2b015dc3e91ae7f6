# SPDX-License-Identifier: GPL-2.0-or-later
"""`vmmswapctl trace` on trace files, and on journal entries as journalctl prints them."""

import errno
import json
import mmap
import os
from pathlib import Path

import pytest

from vmmswap import trace_format as tf
from vmmswap.ctl import trace
from vmmswap.ctl.failure import CtlError, ExitStatus
from vmmswap.ctl.main import main
from vmmswap.errors import ProtocolError

PAGE = mmap.PAGESIZE
HEADER = tf.TraceHeader(
    1700000000000, (tf.TraceRegion(0x10000, 16 * PAGE), tf.TraceRegion(0x100000, 4 * PAGE))
)
FAULTS = [
    tf.Fault(1_000, 0x10000, 0),
    tf.Fault(2_000, 0x10000 + PAGE - 1, 0),  # the same page again
    tf.Fault(500_000_000, 0x100000, 0),
    tf.Fault(1_500_000_000, 0x10000, 1),  # another process
    tf.Fault(2_000_000_000, 0x900000, 1),  # outside
]
LINES = [tf.header_line(HEADER), *map(tf.fault_line, FAULTS)]


@pytest.fixture
def log_dir(tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "page_fault.log").write_text("\n".join(LINES) + "\n")
    return tmp_path


def entry(sequence, faults):
    return tf.batch_fields("web", "ab" * 16, sequence, faults)


def test_export_of_a_file_is_the_file(log_dir, capsys):
    assert main(["trace", "export", "web", "--log-dir", str(log_dir)]) == 0
    assert capsys.readouterr().out == (log_dir / "web" / "page_fault.log").read_text()


def test_stats(log_dir, capsys):
    assert main(["trace", "stats", "web", "--log-dir", str(log_dir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "BaseTimestampMs": 1700000000000,
        "Faults": 5,
        "DurationMs": 2000,
        "FaultsPerSecond": 2.5,
        "BusiestSecond": 0,
        "BusiestSecondFaults": 3,
        "UniquePages": 4,
        "Refaults": 1,
        "OutsideRegions": 1,
        "Regions": [
            {"BaseAddress": 0x10000, "Bytes": 16 * PAGE, "Faults": 3, "UniquePages": 2},
            {"BaseAddress": 0x100000, "Bytes": 4 * PAGE, "Faults": 1, "UniquePages": 1},
        ],
        "Processes": {"0": 3, "1": 2},
    }


def test_stats_for_people(log_dir, capsys):
    assert main(["trace", "stats", "web", "--log-dir", str(log_dir)]) == 0
    out = capsys.readouterr().out
    assert "Faults per second" in out
    assert "1 (20 %)" in out
    assert "0x100000" in out


def test_an_empty_trace_counts_nothing():
    stats = trace.count(tf.TraceHeader(0, ()), [])
    assert (stats["Faults"], stats["FaultsPerSecond"], stats["Regions"]) == (0, 0.0, [])


def test_a_broken_file(log_dir, capsys):
    with (log_dir / "web" / "page_fault.log").open("a") as file:
        file.write("nonsense\n")
    assert main(["trace", "stats", "web", "--log-dir", str(log_dir)]) == 1
    err = capsys.readouterr().err
    assert "page_fault.log holds a broken trace: line 7: " in err
    assert err.count("\n") == 1


def test_a_missing_file(tmp_path, capsys):
    assert main(["trace", "export", "web", "--from", "file", "--log-dir", str(tmp_path)]) == 1
    assert "page_fault.log: No such file or directory; `vmmswapctl log start`" in capsys.readouterr().err


def test_a_name_cannot_leave_the_directory(tmp_path, capsys):
    assert main(["trace", "export", "../web", "--log-dir", str(tmp_path)]) == 2
    assert "'../web' is not a VM name" in capsys.readouterr().err


def test_batches_give_the_same_lines():
    entries = [entry(0, FAULTS[:2]), entry(1, []), entry(2, FAULTS[2:])]
    through_json = [json.loads(json.dumps(item)) for item in entries]
    assert [tf.fault_line(fault) for fault in trace.faults_of(through_json)] == LINES[1:]


def test_missing_batches_are_told_after_what_is_there():
    faults = trace.faults_of([entry(1, FAULTS[:1]), entry(4, FAULTS[1:2])])
    assert [next(faults), next(faults)] == FAULTS[:2]
    with pytest.raises(CtlError, match="3 batches of this trace") as caught:
        next(faults)
    assert caught.value.status is ExitStatus.FAILED


@pytest.mark.parametrize("sequence", ["", "x", "-1", "0", "²", ["2", "3"]])
def test_entries_out_of_order_are_refused(sequence):
    second = {**entry(0, FAULTS[1:2]), tf.FIELD_SEQUENCE: sequence}
    with pytest.raises(ProtocolError):
        list(trace.faults_of([entry(0, FAULTS[:1]), second]))


def test_only_root_and_oneself_are_believed():
    command = trace.journal_command("web")
    assert f"_UID={os.geteuid()}" in command
    assert "_UID=0" in command
    assert "--all" in command  # else journalctl leaves out what is above 4 KiB


def test_a_trace_that_may_not_be_read_is_one_line(log_dir, capsys, monkeypatch):
    def refused(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    for method in ("exists", "open"):
        monkeypatch.setattr(Path, method, refused)
    assert main(["trace", "stats", "web", "--log-dir", str(log_dir)]) == ExitStatus.NOT_ALLOWED
    assert capsys.readouterr().err == (
        f"vmmswapctl: cannot read {log_dir}/web/page_fault.log: Permission denied; try as root, or use"
        " --from journal\n"
    )


def test_a_bug_is_one_line_and_a_traceback_where_it_is_asked_for(capsys, monkeypatch):
    def broken(_args):
        raise TypeError("what no user can mend")

    monkeypatch.setattr(trace, "run", broken)
    assert main(["trace", "stats", "web"]) == ExitStatus.FAILED
    assert capsys.readouterr().err == (
        "vmmswapctl: a bug in vmmswapctl: TypeError('what no user can mend'); please report it, with what it"
        " prints with VMMSWAP_DEBUG=1 set\n"
    )
    monkeypatch.setenv("VMMSWAP_DEBUG", "1")
    with pytest.raises(TypeError):
        main(["trace", "stats", "web"])
