# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a command on another kernel: python -m tests.kernels VERSION COMMAND."""

import sys

from tests.kernels import kernel

version, *words = sys.argv[1:]
if reason := kernel.missing() or kernel.prepare(version):
    sys.exit(reason)
result = kernel.run(version, " ".join(words), limit_s=1800)
print(result.output if result.status is not None else result)
sys.exit(1 if result.status is None else result.status)
