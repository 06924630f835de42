"""Federates a small PyTorch network: over simulated sites, processes, or real ones."""

import argparse
from pathlib import Path

import numpy as np
import torch
from model import Net
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from firesteel.data import partition, save_partitions
from firesteel.recipe import FedAvgRecipe, PocEnv, ProdEnv, SimEnv, add_experiment_tracking


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1, help="per round, at every site")
    parser.add_argument("--env", choices=("sim", "poc", "prod"), default="sim")
    parser.add_argument("--kit", default="kits/lead", help="your startup kit, for --env prod")
    args = parser.parse_args()

    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    X, test_X, y, test_y = train_test_split(X, y, test_size=0.2, random_state=0)
    parts = partition(X, y, args.sites, alpha=1.0)
    folder = Path("firesteel-runs") / "hello-pt-data"

    torch.manual_seed(0)
    recipe = FedAvgRecipe(
        name="hello-pt",
        model=Net(),
        train_script="client.py",
        train_args=f"--epochs {args.epochs}",
        min_clients=args.sites,
        data={"digits": "digits"},
        num_rounds=args.rounds,
        save_filename="FL_global_model.pt",
    )
    add_experiment_tracking(recipe, tracking_type="tensorboard")
    if args.env == "prod":
        # The sites have data of their own, which they call `digits` as well.
        env = ProdEnv(args.kit)
    else:
        kind = PocEnv if args.env == "poc" else SimEnv
        env = kind(clients=list(parts), data=save_partitions(parts, folder, name="digits"))
    run = recipe.execute(env)
    result = run.get_result()

    net = Net()
    net.load_state_dict(run.model())
    net.eval()
    with torch.no_grad():
        guesses = net(torch.from_numpy(test_X).reshape(-1, 1, 8, 8)).argmax(1).numpy()
    print(f"{run.get_status()}: {result}")
    print(f"the federated model reads {(guesses == test_y).mean():.1%} of {len(test_y)} new images")
    print(f"training curves: tensorboard --logdir {result}/tb_events")


if __name__ == "__main__":
    main()
