# SPDX-License-Identifier: GPL-2.0-or-later
"""What pyproject.toml cannot say: the engine's extension modules. `make install` leaves the failpoints out."""

import os

from setuptools import setup

modules = ["engine/build_cffi.py:release"]
if os.environ.get("VMMSWAP_RELEASE") != "1":
    modules.append("engine/build_cffi.py:failpoints")

setup(cffi_modules=modules)
