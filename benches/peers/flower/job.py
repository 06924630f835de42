"""The trivial job, for Flower's simulation: adds one to every weight."""

import argparse

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    arrays = [array + 1 for array in message.content["arrays"].to_numpy_ndarrays()]
    content = RecordDict(
        {
            "arrays": ArrayRecord(arrays),
            "metrics": MetricRecord({"mean": float(arrays[0].mean()), "num-examples": 1}),
        }
    )
    return Message(content=content, reply_to=message)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    server = ServerApp()

    @server.main()
    def run(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=options.sites,
            min_available_nodes=options.sites,
        )
        initial = np.arange(1, 10, dtype=np.float32).reshape(3, 3)
        result = strategy.start(
            grid=grid, initial_arrays=ArrayRecord([initial]), num_rounds=options.rounds
        )
        weights = result.arrays.to_numpy_ndarrays()[0]
        # Flower sums in float32 in the order of arrival, so that the last digits vary.
        print("first weight:", round(float(weights.ravel()[0]), 3), flush=True)

    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=options.sites,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": 2},
        },
    )


if __name__ == "__main__":
    main()
