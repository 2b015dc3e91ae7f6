# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices that pin guest memory for good."""

from __future__ import annotations

from vmmswap.attach.fd_table import fd_links
from vmmswap.attach.target import Target
from vmmswap.errors import NotSupportedError

_PINNING = ("/dev/vfio/", "/dev/vhost-vdpa", "/dev/iommu", "/dev/infiniband/uverbs", "anon_inode:[vfio")


def check_devices(target: Target) -> None:
    """NotSupportedError if a device has the guest's memory pinned for good."""
    for number, link in fd_links(target):
        if link.startswith(_PINNING):
            raise NotSupportedError(
                f"{target} has {link} open (fd {number}): a device that is passed through to the guest"
                " pins all of its memory, so none can be swapped out: remove the device from the VM"
            )
