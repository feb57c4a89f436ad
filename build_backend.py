"""setuptools' build hooks, except that an isolated build requires torch only if kernels are compiled.

As a fixed build requirement, torch (5 GB) would be downloaded even for ``SE_FUSED_BUILD=none`` and a source archive.
"""

import os
import sys

import setuptools
from setuptools.build_meta import *  # noqa: F403

# Without build isolation build-system.requires is not checked. A new venv of Python 3.11 has setuptools 65, whose error
# message would be about the license. (torch 2.11 requires setuptools<82.)
if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(f"\nse_fused: this is setuptools {setuptools.__version__}, too old: pip install 'setuptools>=77.0.3'\n")


def get_requires_for_build_wheel(config_settings=None):
    # ninja (parallel compilation) and pybind11 (kernel attributes in `info`) are optional, but cost nothing in an
    # isolated build.
    return [] if os.environ.get("SE_FUSED_BUILD") == "none" else ["torch>=2.11", "ninja", "pybind11"]


get_requires_for_build_editable = get_requires_for_build_wheel
