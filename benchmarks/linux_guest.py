# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of a booted Linux guest, as a file.

The distribution's kernel under QEMU, with a page cache, a Python process and a database process in it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.rivals import BUILD
from tests.guests.qemu import KERNEL_DIR, Qemu, missing, prepared

MEMORY_MIB = 512
CACHE_MIB = 192  # read from a disk that holds shared libraries
PROGRAMS = ("/usr/bin/python3", "/usr/bin/sqlite3")
BOOT_S = 400.0
COPY_BYTES = 1 << 20

INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
while read -r name; do
	[ -e "/modules/$name.ko" ] && /bin/busybox insmod "/modules/$name.ko"
done </modules/order
exec 3</dev/vda # its cache goes with the last file that is open
/bin/busybox dd if=/dev/vda of=/dev/null bs=1M 2>/dev/null
/usr/bin/python3 /python.py &
(/bin/busybox cat /database.sql; exec /bin/busybox sleep 100000) | /usr/bin/sqlite3 &
while [ ! -e /python-ready ] || [ ! -s /database-ready ]; do /bin/busybox sleep 1; done
case $(/bin/busybox cat /proc/cmdline) in
*"{services}"*)
	/bin/busybox syslogd
	/bin/busybox klogd
	/usr/bin/python3 /ticker.py &
	while /bin/busybox sleep 10; do /bin/busybox cat /proc/meminfo /proc/loadavg >/tmp/state; done &
	;;
esac
echo workload ready >/dev/ttyS0
exec /bin/busybox sleep 100000
"""
SERVICES = (
    "with-services"  # on the kernel's command line: programs that wake up now and then, as idle guests have
)
TICKER = """\
import asyncio, os
async def tick():
    while True:
        await asyncio.sleep(1)
        os.getloadavg()
asyncio.run(tick())
"""
PYTHON = """\
import argparse, ast, asyncio, decimal, email.message, http.client, json, logging, re, sqlite3
people = [{"id": i, "name": f"name {i}", "tags": [str(i % 7), str(i % 11)]} for i in range(60000)]
text = json.dumps(people)
open("/python-ready", "w").close()
import signal
signal.pause()
"""
DATABASE = """\
create table item(id integer primary key, code text, name text);
insert into item with recursive n(i) as (select 1 union all select i + 1 from n where i < 150000)
	select i, hex(i * 7919), 'item number ' || i from n;
create index item_code on item(code);
.output /database-ready
select count(*) from item;
.output stdout
"""


def why_not() -> str:
    """Why no such guest can be booted here, or ""."""
    absent = [program for program in PROGRAMS if not Path(program).exists()]
    return missing() or (f"needs {' and '.join(absent)}" if absent else prepared())


def _copy_program(root: Path, program: str) -> None:
    linked = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    for source in {program, *re.findall(r"(/\S+)", linked)}:
        target = root / source.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(Path(source).resolve(), target)


def _make_initrd(initrd: Path) -> None:
    version = Path("/usr/bin/python3").resolve().name
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("bin", "proc", "sys", "dev", "tmp"):
            (root / name).mkdir()
        shutil.copy2(shutil.which("busybox") or "", root / "bin" / "busybox")
        shutil.copytree(KERNEL_DIR / "modules", root / "modules")
        for program in PROGRAMS:
            _copy_program(root, program)
        shutil.copytree(
            f"/usr/lib/{version}",
            root / "usr/lib" / version,
            ignore=shutil.ignore_patterns("test", "lib2to3", "config-*", "*-packages"),
            symlinks=True,
        )
        texts = {
            "init": INIT.replace("{services}", SERVICES),
            "python.py": PYTHON,
            "ticker.py": TICKER,
            "database.sql": DATABASE,
        }
        for name, text in texts.items():
            (root / name).write_text(text)
        (root / "init").chmod(0o755)
        with initrd.open("wb") as out:
            pack = "set -o pipefail; find . | cpio --quiet -o -H newc | gzip -1"
            subprocess.run(["bash", "-c", pack], cwd=root, stdout=out, check=True)


def _make_disk(disk: Path) -> None:
    left = CACHE_MIB << 20
    with disk.open("wb") as out:
        for path in sorted(Path("/usr/lib").rglob("*.so*")):
            if left and path.is_file() and not path.is_symlink():
                left -= out.write(path.read_bytes()[:left])
        out.truncate(CACHE_MIB << 20)


def _copy_data(source: int, target: int) -> None:
    """Holes stay holes."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError:  # ENXIO: no data after this
            break
        end = os.lseek(source, at, os.SEEK_HOLE)
        while at < end:
            at += os.pwrite(target, os.pread(source, min(COPY_BYTES, end - at), at), at)


def _copy_memory(pid: int, target: Path) -> None:
    os.kill(pid, signal.SIGSTOP)
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if "memfd:memory-backend" not in str(entry.readlink()):
            continue
        source = os.open(entry, os.O_RDONLY)
        with target.open("wb") as out:
            _copy_data(source, out.fileno())
        os.close(source)
        return
    raise RuntimeError("QEMU has no memory backend")


@contextmanager
def booted(*options: str) -> Iterator[Qemu]:
    """The guest, once its processes are there. Takes a minute. options: more of QEMU's."""
    BUILD.mkdir(parents=True, exist_ok=True)
    initrd, disk = BUILD / "linux-guest.gz", BUILD / "linux-guest.disk"
    if not disk.exists() or disk.stat().st_mtime < Path(__file__).stat().st_mtime:
        _make_initrd(initrd)
        _make_disk(disk)
    drive = f"file={disk},format=raw,if=virtio,readonly=on,snapshot=off"
    with (
        tempfile.TemporaryDirectory() as folder,
        Qemu(
            Path(folder),
            *("-initrd", str(initrd), "-drive", drive, *options),
            memory_mib=MEMORY_MIB,
            boot_s=BOOT_S,
        ) as vm,
    ):
        yield vm


def dump(target: Path) -> None:
    """Copy the booted guest's memory to a file."""
    with booted() as vm:
        _copy_memory(vm.pid, target)
