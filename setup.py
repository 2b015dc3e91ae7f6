# SPDX-License-Identifier: GPL-2.0-or-later
"""What pyproject.toml cannot say: the engine's extension modules.

VMMSWAP_MODULES names which of them to build; by default both, the one that ships and the one for tests.
"""

import os

from setuptools import setup

modules = os.environ.get("VMMSWAP_MODULES", "release failpoints").split()
setup(cffi_modules=[f"engine/build_cffi.py:{module}" for module in modules])
