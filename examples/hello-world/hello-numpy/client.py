"""Fits the line to one site's points."""

import argparse

from model import loss, make_data, train

import firesteel.client as flare

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=5)
args = parser.parse_args()

flare.init()
X, y = make_data(flare.get_site_name())

while flare.is_running():
    model = flare.receive()
    metrics = {"loss": loss(model.params, X, y)}
    params = train(model.params, X, y, steps=args.steps)
    flare.send(flare.FLModel(params=params, metrics=metrics))
