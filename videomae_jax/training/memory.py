"""Main memory that only compiling needed."""

import ctypes


def return_freed_memory() -> None:
    """Have the C library give its free pages back to the system.

    glibc keeps them otherwise, 0.1 to 0.7 GB after a step of ViT-S is compiled; C libraries
    without the call are left alone.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
