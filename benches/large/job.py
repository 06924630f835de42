"""Writes the large job and its model into a folder, without running it.

The model is written a tensor at a time: what measures memory should not need
any itself.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
from firesteel import _native
from firesteel.recipe import FedAvgRecipe, SimEnv

HERE = Path(__file__).resolve().parent


def write(path: Path, tensors: int, numbers: int, seed: int) -> None:
    """A model of noise."""
    draw = np.random.default_rng(seed)
    _native.write_model(
        str(path),
        [
            (
                f"layer_{index:06}",
                "F32",
                (numbers,),
                lambda: draw.random(numbers, dtype=np.float32),
            )
            for index in range(tensors)
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--bytes", type=int, default=64 << 20, help="of the model")
    parser.add_argument("--tensors", type=int, default=64)
    parser.add_argument("--external", action="store_true", help="trainers are started by a command")
    parser.add_argument("--script", default=str(HERE / "client.py"))
    options = parser.parse_args()

    folder = Path.cwd()
    recipe = FedAvgRecipe(
        name="large",
        framework="numpy",
        model={"layer_000000": np.zeros(1, dtype=np.float32)},
        min_clients=options.sites,
        num_rounds=options.rounds,
        train_script=options.script,
        launch_external_process=options.external,
    )
    exported = Path(recipe.export(folder, env=SimEnv(num_clients=options.sites)))
    job = json.loads((exported / "job.json").read_text(encoding="utf-8"))
    numbers = max(1, options.bytes // 4 // options.tensors)
    model = exported / job["initial_model"]
    os.chmod(model, 0o600)
    write(model, options.tensors, numbers, seed=7)
    job["initial_model"] = str(model)
    job["trainer"]["script"] = str(exported / job["trainer"]["script"])
    (exported / "job.json").write_text(json.dumps(job), encoding="utf-8")
    print(json.dumps({"job": str(exported / "job.json"), "model": str(model)}))


if __name__ == "__main__":
    main()
