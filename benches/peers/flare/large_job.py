"""FedAvg with a large model in FLARE's POC: server and clients as processes, mutual TLS.

What POC starts is started by this process's own descendants, and whoever runs
this ends what is left of them. All its files lie in the current folder, which
`HOME` must name, too: FLARE writes its settings there.
"""

import argparse
import os
import re
import socket
from importlib import resources

from large import NoisePersistor
from nvflare.client.config import ExchangeFormat
from nvflare.fuel.utils.constants import FrameworkType
from nvflare.recipe import PocEnv
from nvflare.recipe.fedavg import FedAvgRecipe

HERE = os.path.dirname(os.path.abspath(__file__))


def free_port() -> int:
    """One that nobody has at the moment."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def project(sites: int) -> str:
    """POC's own default project, with our sites and a port that is free."""
    text = resources.files("nvflare.lighter").joinpath("dummy_project.yml").read_text()
    text, ports = re.subn(r"fed_learn_port: \d+", f"fed_learn_port: {free_port()}", text)
    clients = "".join(
        f"  - name: site-{number}\n    type: client\n    org: nvidia\n"
        for number in range(1, sites + 1)
    )
    # POC calls its server so when it makes the project itself.
    text = text.replace("name: server1", "name: server")
    head, tail = text.split("  - name: site-1\n", 1)
    _, tail = tail.split("  - name: admin@nvidia.com\n", 1)
    assert ports == 1
    path = os.path.abspath("project.yml")
    with open(path, "w", encoding="utf-8") as file:
        file.write(head + clients + "  - name: admin@nvidia.com\n" + tail)
    return path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--tensors", type=int, default=64)
    options = parser.parse_args()
    if os.path.realpath(os.environ["HOME"]) != os.path.realpath("."):
        raise SystemExit("HOME must be the current folder")
    os.environ["NVFLARE_POC_WORKSPACE"] = os.path.abspath("poc")

    recipe = FedAvgRecipe(
        name="large",
        framework=FrameworkType.NUMPY,
        server_expected_format=ExchangeFormat.NUMPY,
        model_persistor=NoisePersistor(
            options.megabytes, options.tensors, os.path.abspath("marks.jsonl")
        ),
        min_clients=options.sites,
        num_rounds=options.rounds,
        train_script=os.path.join(HERE, "large_client.py"),
    )
    # POC waits three seconds for its services before it submits the job; on a
    # busy machine the server needs longer, and the login may.
    env = PocEnv(
        num_clients=options.sites,
        project_conf_path=project(options.sites),
        extra={"login_timeout": 60},
    )
    run = recipe.execute(env)
    # The result's status says whether it was done; what came of it stands in
    # the marks.
    run.get_result(timeout=float(os.environ.get("LARGE_TIMEOUT_S", "0")))
    print("status:", run.get_status())


if __name__ == "__main__":
    main()
