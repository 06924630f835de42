"""The trivial job."""

import argparse
import os

import numpy as np
from firesteel.recipe import FedAvgRecipe, SimEnv


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reuse", action="store_true", help="processes serve several sites")
    options = parser.parse_args()

    recipe = FedAvgRecipe(
        name="trivial",
        framework="numpy",
        model={"weights": np.arange(1, 10, dtype=np.float32).reshape(3, 3)},
        min_clients=options.sites,
        num_rounds=options.rounds,
        train_script=os.path.join(os.path.dirname(os.path.abspath(__file__)), "client.py"),
        key_metric="mean",
    )
    run = recipe.execute(SimEnv(num_clients=options.sites, reuse_processes=options.reuse))
    print("first weight:", float(run.model()["weights"].ravel()[0]))


if __name__ == "__main__":
    main()
