"""How fast bitsandbytes quantizes on one core: GB of float32 per second, the best of all rounds.

It makes its outputs anew each time: on a CPU it refuses to write into given ones.
"""

import json
import sys
import time

import bitsandbytes.functional as bnb
import torch


def main() -> None:
    megabytes, rounds = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    torch.manual_seed(7)
    values = torch.randn(megabytes * (1 << 20) // 4) * 0.04
    gigabytes = values.numel() * 4 / 1e9
    cases = {
        "blockwise8": (
            lambda: bnb.quantize_blockwise(values, blocksize=4096),
            lambda made: bnb.dequantize_blockwise(*made),
        ),
        "fp4": (
            lambda: bnb.quantize_4bit(values, blocksize=64, quant_type="fp4"),
            lambda made: bnb.dequantize_4bit(*made),
        ),
        "nf4": (
            lambda: bnb.quantize_4bit(values, blocksize=64, quant_type="nf4"),
            lambda made: bnb.dequantize_4bit(*made),
        ),
    }
    found = {}
    for name, (encode, decode) in cases.items():
        best = [float("inf"), float("inf")]
        for _ in range(rounds):
            before = time.perf_counter()
            made = encode()
            between = time.perf_counter()
            decode(made)
            best[0] = min(best[0], between - before)
            best[1] = min(best[1], time.perf_counter() - between)
        found[name] = {"encode": gigabytes / best[0], "decode": gigabytes / best[1]}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
