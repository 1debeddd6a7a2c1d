"""Build the one extension; everything else about the package is in pyproject.toml.

OJS_DEBUG=1 writes annotated HTML beside the sources and compiles line tracing in (for profilers and coverage).
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("OJS_DEBUG") == "1"

core = Extension(
    "ojs_fast._core",
    sources=["ojs_fast/_core.pyx"],
    depends=sorted(path.as_posix() for path in Path("ojs_fast").glob("_core_*.pxi")),
    extra_compile_args=["-O3"],
    define_macros=[("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1")] if DEBUG else [],
)

setup(
    ext_modules=cythonize(
        [core],
        annotate=DEBUG,
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "linetrace": DEBUG,
            "autotestdict": False,  # no __test__, no pickling: what _core.pyi does not promise
            "auto_pickle": False,
        },
    )
)
