# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables, and how text of peers is printed."""

import dataclasses

from vmmswap.bus.manager import status_values
from vmmswap.ctl import output
from vmmswap.ctl.failure import one_line
from vmmswap.status import KEYS, Operation, State, Status


def test_columns_are_aligned_without_trailing_blanks(capsys):
    output.print_table(("NAME", "PAGES", "WHY"), [("a", "1", "x"), ("longer", "1000", "")], right=(1,))
    assert capsys.readouterr().out == "NAME    PAGES  WHY\na           1  x\nlonger   1000\n"


def test_every_key_has_a_place_in_the_full_view():
    """Two statuses that differ in one key must not look the same."""
    base = Status(
        name="web", resident_pages=1, operation=Operation.SWAP_OUT, total_pages=10**6, error="e", mode="m"
    )
    other = {"s": "other", "t": 12_345_678, "u": 77, "b": True}
    summed = {"stored_bytes", "name"}  # the sum of two others that are shown; the table's title
    for row in KEYS:
        changed = dataclasses.replace(base, **{row.attribute: other[row.signature]})
        same = output.status_rows(status_values(base)) == output.status_rows(status_values(changed))
        assert same == (row.attribute in summed), row.key


def test_what_is_compressed_is_shown_with_its_ratio():
    def compressed(**status):
        rows = dict(output.status_rows(status_values(Status(**status))))
        return rows.get("Compressed to")

    assert compressed(stored_pages=1024, compressed_bytes=1 << 20) == "1.0 MiB (4.0 : 1)"
    assert compressed(stored_pages=1024) is None
    older = {"CompressedBytes": 1 << 20}  # a monitor that does not say how many pages it is
    assert dict(output.status_rows(older))["Compressed to"] == "1.0 MiB"


def test_what_a_vm_has_freed_is_a_column_to_sort_by():
    freed = output.COLUMNS["freed"]
    status = status_values(Status(net_freed_bytes=3 << 19))
    assert (freed.text(status), freed.order(status)) == ("1.5 MiB", 3 << 19)
    assert freed.text({"Name": "older"}) == "0.0 MiB"


def test_sizes_use_the_vms_page_size():
    assert output.pages({"PageSize": 65536, "SwapPages": 32}, "SwapPages") == "2.0 MiB (32 pages)"
    assert (
        output.COLUMNS["resident"].text(status_values(Status(page_size=65536, resident_pages=32)))
        == "2.0 MiB"
    )


def test_what_a_vm_without_a_monitor_shows():
    bare = {"Name": "web", "State": "Ready"}
    assert [column.text(bare) for column in output.COLUMNS.values()][:7] == [
        "web",
        "Ready",
        "-",
        "-",
        "-",
        "-",
        "0.0 MiB",
    ]
    assert output.state_text({"Name": "web", "State": "", "Listening": True}) == "no VMM yet"


def test_progress_without_a_total():
    assert output.operation_text({"Operation": "trim", "TotalPages": 0}) == "trim"
    assert output.operation_text({"Operation": "trim", "TotalPages": 3, "ProgressPages": 2}) == "trim 66 %"


def test_a_change_is_one_line():
    status = status_values(Status(name="web", state=State.FAILED, error="no\r\nspace\x1b[2J"))
    assert output.change_line(status).endswith("error: no space [2J")


def test_one_line():
    assert one_line("  a\n\tb\x00c\u2028d  ") == "a b c d"
