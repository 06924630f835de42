"""Jobs, and the environments they run in.

    from firesteel.recipe import FedAvgRecipe, SimEnv

    recipe = FedAvgRecipe(
        name="digits", model=Net(), train_script="client.py", min_clients=5, num_rounds=10
    )
    run = recipe.execute(SimEnv(num_clients=5))
    print(run.get_status(), run.get_result())

`SimEnv` simulates the federation on this machine, `PocEnv` deploys it here, with
processes and certificates, and `ProdEnv` submits to one that runs.
"""

from __future__ import annotations

import sys as _sys

from firesteel.recipe._env import ExecEnv, SimEnv
from firesteel.recipe._fedavg import FedAvgRecipe, NumpyFedAvgRecipe, SklearnFedAvgRecipe
from firesteel.recipe._poc import PocEnv
from firesteel.recipe._prod import ProdEnv
from firesteel.recipe._recipe import Recipe
from firesteel.recipe._recipe import take_export_arguments as _take_export_arguments
from firesteel.recipe._run import Run
from firesteel.recipe._tracking import add_experiment_tracking
from firesteel.recipe._types import (
    ExchangeFormat,
    FrameworkType,
    Policy,
    TransferType,
    TrimmedMean,
)

__all__ = [
    "ExchangeFormat",
    "ExecEnv",
    "FedAvgRecipe",
    "FrameworkType",
    "NumpyFedAvgRecipe",
    "PocEnv",
    "Policy",
    "ProdEnv",
    "Recipe",
    "Run",
    "SimEnv",
    "SklearnFedAvgRecipe",
    "TransferType",
    "TrimmedMean",
    "add_experiment_tracking",
]

_take_export_arguments(_sys.argv)
