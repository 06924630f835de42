"""Trains either network at one site; tells how good the model is that came."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from networks import CONTEXT, DigitsNet, LanguageModel, language_loss, windows
from torch import nn

import firesteel.client as flare

parser = argparse.ArgumentParser()
parser.add_argument("task", choices=("digits", "language"))
parser.add_argument("--steps", type=int, required=True, help="per round")
parser.add_argument("--lr", type=float, required=True)
parser.add_argument("--characters", type=int, default=0)
args = parser.parse_args()

flare.init()
# Several sites train at once: each with all cores would be slower than each with one.
torch.set_num_threads(1)
with np.load(flare.data("part")) as file:
    mine = {name: torch.from_numpy(file[name]) for name in file.files}
with np.load(flare.data("held")) as file:
    held = {name: torch.from_numpy(file[name]) for name in file.files}

if args.task == "digits":
    net: nn.Module = DigitsNet()

    def loss_of(data: dict[str, torch.Tensor], at: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(net(data["X"][at]), data["y"][at])

    rows, batch = len(mine["y"]), 32
    judged = torch.arange(len(held["y"]))
else:
    net = LanguageModel(args.characters)

    def loss_of(data: dict[str, torch.Tensor], at: torch.Tensor) -> torch.Tensor:
        return language_loss(net, windows(data["codes"], at))

    rows, batch = len(mine["codes"]) - CONTEXT - 1, 16
    judged = torch.arange(0, len(held["codes"]) - CONTEXT - 1, 101)

while flare.is_running():
    model = flare.receive()
    net.load_state_dict(model.params)
    net.eval()
    with torch.no_grad():
        judgment = float(loss_of(held, judged))
    net.train()
    optimizer: torch.optim.Optimizer
    if args.task == "digits":
        optimizer = torch.optim.SGD(net.parameters(), lr=args.lr, momentum=0.9)
    else:
        optimizer = torch.optim.Adam(net.parameters(), lr=args.lr)
    for _ in range(args.steps):
        optimizer.zero_grad()
        loss_of(mine, torch.randint(rows, (batch,))).backward()
        optimizer.step()
    flare.send(flare.FLModel(params=net.state_dict(), metrics={"loss": judgment}))
