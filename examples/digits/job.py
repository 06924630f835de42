"""Federates the training of a digit reader over five sites, and shows what that is worth.

    python job.py --rounds 25 --sites 5 --alpha 0.3
"""

import argparse
from pathlib import Path

import numpy as np
from model import accuracy, init_params, train
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from firesteel.data import partition, save_partitions
from firesteel.recipe import FedAvgRecipe, SimEnv


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--sites", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=2, help="per round, at every site")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument(
        "--alpha", type=float, default=0.3, help="how evenly digits are dealt out; small: unevenly"
    )
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--workspace", default="firesteel-runs", help="where runs are kept")
    args = parser.parse_args()

    # 1,797 real images of 8 x 8 pixels. A fifth is kept for the final table.
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    X, test_X, y, test_y = train_test_split(X, y, test_size=0.2, stratify=y, random_state=args.seed)
    parts = partition(X, y, args.sites, by="dirichlet", alpha=args.alpha, seed=args.seed, least=20)
    env = SimEnv(
        clients=list(parts),
        data=save_partitions(parts, Path(args.workspace) / "digits-data", name="digits"),
        seed=args.seed,
        workspace_root=args.workspace,
    )
    recipe = FedAvgRecipe(
        name="digits",
        model=init_params(args.seed),
        train_script=Path(__file__).with_name("client.py"),
        train_args=f"--epochs {args.epochs} --lr {args.lr}",
        min_clients=args.sites,
        num_rounds=args.rounds,
        framework="numpy",
    )
    run = recipe.execute(env)

    def trained_on(X, y):
        """As many epochs as the federation had, without it."""
        np.random.seed(args.seed)
        params = train(init_params(args.seed), X, y, epochs=args.rounds * args.epochs, lr=args.lr)
        return accuracy(params, test_X, test_y)

    rows = [
        (f"{site} alone", len(part_y), trained_on(part_X, part_y), digits(part_y))
        for site, (part_X, part_y) in parts.items()
    ]
    federated = accuracy(run.model(), test_X, test_y)
    rows.append(("federated", len(y), federated, "every site's, without moving an image"))
    rows.append(("all data pooled", len(y), trained_on(X, y), "what nobody could do"))

    print(f"\nAccuracy on {len(test_y)} images that nobody trained on:\n")
    print(f"  {'trained by':<16} {'images':>6}  {'accuracy':>8}  digits it saw")
    for who, images, share, seen in rows:
        print(f"  {who:<16} {images:>6}  {share:>8.1%}  {seen}")

    folder = Path(run.get_result())
    here = Path(__file__).parent
    print(
        f"""
{run.get_status()}; everything is in {folder}
  model     {folder / "models" / "last.safetensors"}
  metrics   {folder / "metrics"}
  logs      {folder / "log.txt"}

What to run next:
  make demo ARGS="--alpha 0.1"      # sites that know fewer digits
  make demo ARGS="--rounds 50"      # more rounds
  less {here / "client.py"}      # the four lines that make a script federated"""
    )


def digits(y):
    """The digits that make up most of a site's images."""
    counts = np.bincount(y, minlength=10)
    main = [str(d) for d in range(10) if counts[d] >= 0.02 * len(y)]
    return f"mostly {' '.join(main)}" if len(main) < 10 else "all"


if __name__ == "__main__":
    main()
