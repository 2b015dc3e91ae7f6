# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a command on another kernel: python -m tests.kernels [--limit SECONDS] VERSION COMMAND..."""

import argparse
import functools
import sys

from tests.kernels import kernel

parser = argparse.ArgumentParser(prog="python -m tests.kernels", description=__doc__)
parser.add_argument("--limit", metavar="SECONDS", type=float, default=1800.0, help="end it after that")
parser.add_argument("version")
parser.add_argument("command", nargs=argparse.REMAINDER)
options = parser.parse_args()
if reason := kernel.missing() or kernel.prepare(options.version):
    sys.exit(reason)
hear = functools.partial(print, flush=True)
result = kernel.run(options.version, " ".join(options.command), limit_s=options.limit, hear=hear)
if result.status is None:
    sys.exit(f"the job did not end; console:\n{result.console[-3000:]}")
sys.exit(result.status)
