# SPDX-License-Identifier: GPL-2.0-or-later
"""Says, when a VM registers, what its encryption on disk lacks on this host."""

from __future__ import annotations

import logging

from vmmswap.engine import Engine, encryption

_log = logging.getLogger("vmmswap.monitor")


def report(engine: Engine) -> None:
    """Nothing, if nothing of the VM is encrypted. A successor does not say it again."""
    key_fd = engine.tier_fds.key
    if key_fd < 0:
        return
    if not encryption.is_fast():
        _log.warning(
            "libcrypto finds no AES instructions in this CPU (AES-NI, PCLMULQDQ): what goes to disk is"
            " encrypted slowly, and page faults from there take longer; Encryption=no does without"
        )
    if not encryption.is_secret(key_fd):
        _log.info(
            "the kernel has no memfd_secret(2) for us: the key of what goes to disk is in locked memory,"
            " which root can read; before Linux 6.5, boot with secretmem.enable=1"
        )
