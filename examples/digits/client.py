"""Trains the digits model on one site's images."""

import argparse

import numpy as np
from model import accuracy, train

import firesteel.client as flare

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--lr", type=float, default=0.05)
args = parser.parse_args()

flare.init()
with np.load(flare.data("digits")) as file:
    X, y = file["X"], file["y"]
# Every fifth image tells how good the model is that comes from the server.
held = np.arange(len(y)) % 5 == 0

while flare.is_running():
    model = flare.receive()
    metrics = {"accuracy": accuracy(model.params, X[held], y[held])}
    params = train(model.params, X[~held], y[~held], epochs=args.epochs, lr=args.lr)
    flare.send(
        flare.FLModel(
            params=params,
            metrics=metrics,
            meta={"NUM_STEPS_CURRENT_ROUND": int((~held).sum())},
        )
    )
