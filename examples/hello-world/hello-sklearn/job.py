"""Federates a scikit-learn classifier: over simulated sites, processes, or real ones."""

import argparse
from pathlib import Path

from model import init_params, make_classifier
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from firesteel.data import partition, save_partitions
from firesteel.recipe import FedAvgRecipe, PocEnv, ProdEnv, SimEnv


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5, help="per round, at every site")
    parser.add_argument("--env", choices=("sim", "poc", "prod"), default="sim")
    parser.add_argument("--kit", default="kits/lead", help="your startup kit, for --env prod")
    args = parser.parse_args()

    X, y = load_digits(return_X_y=True)
    X, test_X, y, test_y = train_test_split(X / 16, y, test_size=0.2, random_state=0)
    parts = partition(X, y, args.sites, by="label", labels_per_site=6)
    folder = Path("firesteel-runs") / "hello-sklearn-data"

    recipe = FedAvgRecipe(
        name="hello-sklearn",
        model=init_params(),
        train_script="client.py",
        train_args=f"--epochs {args.epochs}",
        min_clients=args.sites,
        data={"digits": "digits"},
        num_rounds=args.rounds,
        framework="sklearn",
    )
    if args.env == "prod":
        # The sites have data of their own, which they call `digits` as well.
        env = ProdEnv(args.kit)
    else:
        kind = PocEnv if args.env == "poc" else SimEnv
        env = kind(clients=list(parts), data=save_partitions(parts, folder, name="digits"))
    run = recipe.execute(env)
    result = run.get_result()

    share = make_classifier(run.model()).score(test_X, test_y)
    print(f"{run.get_status()}: {result}")
    print(f"the federated model reads {share:.1%} of {len(test_y)} images that no site has")


if __name__ == "__main__":
    main()
