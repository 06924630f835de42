"""Trains the network on one site's images."""

import argparse

import numpy as np
import torch
from model import Net
from torch.utils.data import DataLoader, TensorDataset

import firesteel.client as flare
from firesteel.client.tracking import SummaryWriter

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--lr", type=float, default=0.02)
args = parser.parse_args()

flare.init()
# Several sites train at once: each with all cores would be slower than each with one.
torch.set_num_threads(1)
with np.load(flare.data("digits")) as file:
    images = torch.from_numpy(file["X"]).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(file["y"])
net = Net()
writer = SummaryWriter()

while flare.is_running():
    model = flare.receive()
    net.load_state_dict(model.params)

    net.eval()
    with torch.no_grad():
        accuracy = (net(images).argmax(1) == labels).float().mean()

    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=args.lr, momentum=0.9)
    loader = DataLoader(TensorDataset(images, labels), batch_size=32, shuffle=True)
    for epoch in range(args.epochs):
        for batch, targets in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(batch), targets)
            loss.backward()
            optimizer.step()
        writer.add_scalar("train/loss", loss.item(), model.current_round * args.epochs + epoch)

    flare.send(
        flare.FLModel(
            params=net.state_dict(),
            metrics={"accuracy": accuracy},
            meta={"NUM_STEPS_CURRENT_ROUND": len(labels)},
        )
    )
