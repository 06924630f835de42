"""The trivial job, for FLARE's recipe and simulator.

With `--poll` every interval that a round of it waits for and that a job can set
is lowered: the client's between two requests for a task, the server's answer to
them, and the controller's between two looks at its tasks. The waits of half a
second in its simulator's worker and in its in-process client are constants.
"""

import argparse
import os

import numpy as np
from nvflare.app_common.np.recipes import NumpyFedAvgRecipe
from nvflare.recipe import SimEnv


class PollingRecipe(NumpyFedAvgRecipe):
    """The recipe with its controller's own interval lowered."""

    poll_s = 0.5

    def _get_controller_kwargs(self):
        return {**super()._get_controller_kwargs(), "task_check_period": self.poll_s}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--poll", type=float, default=None, metavar="SECONDS")
    options = parser.parse_args()

    recipe_class = NumpyFedAvgRecipe
    if options.poll is not None:
        PollingRecipe.poll_s = options.poll
        recipe_class = PollingRecipe
    recipe = recipe_class(
        name="trivial",
        model=[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]],
        min_clients=options.sites,
        num_rounds=options.rounds,
        train_script=os.path.join(os.path.dirname(os.path.abspath(__file__)), "client.py"),
    )
    if options.poll is not None:
        recipe.add_server_config({"server": {"task_request_interval": options.poll}})
        recipe.add_client_config({"default_task_fetch_interval": options.poll})
    env = SimEnv(
        num_clients=options.sites, num_threads=options.threads, workspace_root=os.path.abspath("ws")
    )
    result = recipe.execute(env).get_result()
    for folder, _, files in os.walk(result):
        if "server.npy" in files:
            print("first weight:", float(np.load(os.path.join(folder, "server.npy")).ravel()[0]))
            return
    raise SystemExit(f"no model below {result}")


if __name__ == "__main__":
    main()
