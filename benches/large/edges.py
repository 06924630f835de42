"""What a trainer's ends of the path cost: arrays into a model file, and back.

Prints CPU seconds per gigabyte, one figure per pass.
"""

import json
import os
import sys
import time

import numpy as np
from firesteel import _native

TENSORS = 64


def main() -> None:
    megabytes, passes = int(sys.argv[1]), int(sys.argv[2])
    numbers = megabytes * (1 << 20) // 4 // TENSORS
    gigabytes = TENSORS * numbers * 4 / 1e9
    draw = np.random.default_rng(7)
    arrays = [draw.random(numbers, dtype=np.float32) for _ in range(TENSORS)]
    tensors = [(f"layer_{at:06}", "F32", array.shape, array) for at, array in enumerate(arrays)]
    found: dict[str, list[float]] = {"write": [], "read": [], "private": []}
    for _ in range(passes):
        before = time.process_time()
        _native.write_model("edge.safetensors", tensors)
        found["write"].append((time.process_time() - before) / gigabytes)
        before = time.process_time()
        file = _native.ModelFile.open(os.path.abspath("edge.safetensors"))
        view = np.frombuffer(file, dtype=np.uint8)
        assert int(view[::4096].sum(dtype=np.uint64)) >= 0
        found["read"].append((time.process_time() - before) / gigabytes)
        # What a trainer does that changes its params in place: pages become its own.
        before = time.process_time()
        own = np.memmap("edge.safetensors", dtype=np.float32, mode="c", offset=0)
        own += 1
        found["private"].append((time.process_time() - before) / gigabytes)
        del view, file, own
        os.remove("edge.safetensors")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
