# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/service.md against the code: MESSAGE_IDs, links, the example of a VMM's unit."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vmmswap.message_ids import ALL

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "service.md").read_text()


def example_unit() -> str:
    """The unit of a VMM, without the document's indentation."""
    found = re.search(r"^    # /etc/systemd/system/vmm-web.service\n((?:    .*\n|\n)+)", TEXT, re.MULTILINE)
    assert found
    return re.sub(r"^    ", "", found[1], flags=re.MULTILINE)


def test_the_table_of_message_ids() -> None:
    rows = re.findall(r"^\| `([0-9a-f]{32})` \| (\w+): ", TEXT, re.MULTILINE)
    assert [(name, identifier) for identifier, name in rows] == list(ALL.items())


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert len(links) > 3
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_the_figures_of_hardening_stay_below_their_bounds() -> None:
    figures = dict(re.findall(r"systemd/(vmmswap\S*\.service)'?\s+# ([\d.]+)$", TEXT, re.MULTILINE))
    assert float(figures["vmmswap@.service"]) <= 2.2
    assert float(figures["vmmswapd.service"]) <= 1.5


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_vmms_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    unit = tmp_path / "vmm-web.service"
    unit.write_text(example_unit().replace("/usr/local/bin/vmm", "/bin/true"))
    for name in ("vmmswap@.socket", "vmmswap@.service"):
        text = (ROOT / "systemd" / name).read_text()
        (tmp_path / name).write_text(re.sub(r"(?m)^ExecStart=.*", "ExecStart=/bin/true", text))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    environment = {"PATH": "/usr/bin:/bin", "SYSTEMD_UNIT_PATH": f"{tmp_path}:/usr/lib/systemd/system"}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
