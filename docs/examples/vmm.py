#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A VMM that hands its guest's memory over, as far as vmmswap is concerned: vmm.py /run/vmmswap/own.sock

Its guest has 256 MiB of random bytes, reads one page a second, and ends with status 1 if a byte is wrong.
"""

import ctypes
import hashlib
import mmap
import os
import random
import sys
import time

from vmmswap.handoff.client import DummyPage, Region, VmmClient, open_userfaultfd

SIZE_BYTES = 256 << 20
PAGE_BYTES = mmap.PAGESIZE


def main() -> None:
    # Shared memory without huge pages: a memfd, mapped shared.
    memfd = os.memfd_create("guest")
    os.ftruncate(memfd, SIZE_BYTES)
    memory = mmap.mmap(memfd, SIZE_BYTES)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    addr = ctypes.addressof(ctypes.c_char.from_buffer(memory))

    def page(number: int) -> bytes:
        return memory[number * PAGE_BYTES : (number + 1) * PAGE_BYTES]

    for offset in range(0, SIZE_BYTES, 1 << 20):
        memory[offset : offset + (1 << 20)] = os.urandom(1 << 20)
    pages = range(SIZE_BYTES // PAGE_BYTES)
    digests = [hashlib.sha256(page(number)).digest() for number in pages]

    uffd = open_userfaultfd()  # stays open for as long as we live
    dummy = DummyPage()
    with VmmClient.connect(sys.argv[1]) as client:
        regions = [Region(addr, SIZE_BYTES, 0, memfd=0)]
        print(f"registered as {client.register(regions, [memfd], uffd, dummy_page=dummy.addr)}", flush=True)
        while True:
            number = random.choice(pages)  # noqa: S311  nothing is secret here
            if hashlib.sha256(page(number)).digest() != digests[number]:
                sys.exit(f"page {number} is not what was written")
            time.sleep(1)


if __name__ == "__main__":
    main()
