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
    found: dict[str, list[float]] = {"write_fresh": [], "write_again": [], "read": []}
    for _ in range(passes):
        for name, path in (("write_fresh", "edge.safetensors"), ("write_again", "again.safetensors")):
            before = time.process_time()
            _native.write_model(path, tensors)
            found[name].append((time.process_time() - before) / gigabytes)
        before = time.process_time()
        file = _native.ModelFile.open(os.path.abspath("edge.safetensors"))
        view = np.frombuffer(file, dtype=np.uint8)
        assert int(view[::4096].sum(dtype=np.uint64)) >= 0
        found["read"].append((time.process_time() - before) / gigabytes)
        del view, file
        os.remove("edge.safetensors")
    os.remove("again.safetensors")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
