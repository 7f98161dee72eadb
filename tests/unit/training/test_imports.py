"""`training` reads images and trains where the service's packages are not installed."""

from __future__ import annotations

import subprocess
import sys

BLOCKED = ("pydicom", "pydantic", "fastapi", "starlette", "uvicorn", "prometheus_client", "app")
PROGRAM = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Absent())
import io
import numpy as np
from PIL import Image
import training.train, training.export, training.evaluation.command
from models.imaging.codec import decode

buffer = io.BytesIO()
Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(buffer, "PNG")
assert decode(buffer.getvalue()).pixels[0, 2, 3, 0] == 11
print("imported")
"""


def test_training_needs_nothing_of_the_service() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "imported", result.stderr
