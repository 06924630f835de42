"""The trivial job, for FLARE's Collab interface: pushed calls, no polling."""

import argparse
import os

import numpy as np
from nvflare.collab import CollabRecipe, collab
from nvflare.recipe import SimEnv


class Trainer:
    """What runs at each site."""

    @collab.publish
    def train(self, weights):
        return weights + 1


class Average:
    """What runs on the server."""

    def __init__(self, rounds=3):
        self.rounds = rounds

    @collab.main
    def run(self):
        weights = np.arange(1, 10, dtype=np.float32).reshape(3, 3)
        for _ in range(self.rounds):
            results = [value for _, value in collab.clients.train(weights)]
            weights = sum(results) / len(results)
        with open(os.environ["TRIVIAL_RESULT"], "w", encoding="utf-8") as file:
            file.write(f"first weight: {float(weights.ravel()[0])}\n")
        return float(weights.ravel()[0])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    os.environ["TRIVIAL_RESULT"] = os.path.abspath("result.txt")
    recipe = CollabRecipe(
        job_name="trivial",
        server=Average(rounds=options.rounds),
        client=Trainer(),
        min_clients=options.sites,
    )
    env = SimEnv(num_clients=options.sites, workspace_root=os.path.abspath("ws"))
    recipe.execute(env).get_result()
    with open(os.environ["TRIVIAL_RESULT"], encoding="utf-8") as file:
        print(file.read())


if __name__ == "__main__":
    main()
