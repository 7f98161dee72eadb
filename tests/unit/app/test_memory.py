import subprocess
import sys

import pytest

from app import memory

# Every second block is freed; what lies between them keeps a heap from shrinking, a mapping not.
PROGRAM = """
import sys
import numpy as np
from app import memory

if sys.argv[1] == "set" and not memory.return_freed():
    sys.exit("cannot be set")
large = np.ones(2**22, np.uint8)
del large
blocks = [np.ones(2**20, np.uint8) for _ in range(200)]
del blocks[::2]
print(int(open("/proc/self/statm").read().split()[1]))
"""


def resident_pages(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_freed_images_leave_the_process() -> None:
    if not memory.return_freed():
        pytest.skip("this system's allocator cannot be set")
    assert resident_pages("left alone") - resident_pages("set") > 80 * 2**20 / 4096
