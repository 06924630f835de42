"""Federates a line fit in NumPy: over simulated sites, processes, or real ones."""

import argparse

from model import TRUE_B, TRUE_W, init_params

from firesteel.recipe import FedAvgRecipe, PocEnv, ProdEnv, SimEnv


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="per round, at every site")
    parser.add_argument("--env", choices=("sim", "poc", "prod"), default="sim")
    parser.add_argument("--kit", default="kits/lead", help="your startup kit, for --env prod")
    args = parser.parse_args()

    recipe = FedAvgRecipe(
        name="hello-numpy",
        model=init_params(),
        train_script="client.py",
        train_args=f"--steps {args.steps}",
        min_clients=args.sites,
        num_rounds=args.rounds,
        key_metric="loss",
        key_metric_mode="min",
    )
    if args.env == "prod":
        env = ProdEnv(args.kit)
    elif args.env == "poc":
        env = PocEnv(num_clients=args.sites)
    else:
        env = SimEnv(num_clients=args.sites)
    run = recipe.execute(env)

    result = run.get_result()
    params = run.model()
    print(f"{run.get_status()}: {result}")
    print(f"learned w = {params['w'].round(2)}, b = {params['b']:.2f}")
    print(f"truth   w = {TRUE_W.round(2)}, b = {TRUE_B:.2f}")


if __name__ == "__main__":
    main()
