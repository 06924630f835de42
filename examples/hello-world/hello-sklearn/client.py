"""Trains a linear digit reader on one site's images."""

import argparse

import numpy as np
from model import CLASSES, get_params, make_classifier

import firesteel.client as flare

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=5)
args = parser.parse_args()

flare.init()
with np.load(flare.data("digits")) as file:
    X, y = file["X"], file["y"]

while flare.is_running():
    model = flare.receive()
    classifier = make_classifier(model.params)
    metrics = {"accuracy": classifier.score(X, y)}
    for _ in range(args.epochs):
        classifier.partial_fit(X, y, classes=np.arange(CLASSES))
    flare.send(
        flare.FLModel(
            params=get_params(classifier),
            metrics=metrics,
            meta={"NUM_STEPS_CURRENT_ROUND": len(y)},
        )
    )
