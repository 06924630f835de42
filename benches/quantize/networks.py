"""The two networks whose training is compared, and their data."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

# Characters that the language model sees at once.
CONTEXT = 64


class DigitsNet(nn.Module):
    """Two convolutions and two linear layers, for images of 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images.reshape(-1, 1, 8, 8))


class Block(nn.Module):
    """Causal self-attention and two linear layers, each behind a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before = nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.between = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.reshape(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.attention(self.before(x)).split(width, dim=2)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.merge(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.narrow(nn.functional.gelu(self.wide(self.between(x))))


class LanguageModel(nn.Module):
    """A causal language model of characters, its embedding tied to its head."""

    def __init__(self, characters: int, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(characters, width)
        self.place = nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters, bias=False)
        self.head.weight = self.embed.weight
        nn.init.normal_(self.embed.weight, std=0.1)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        x = self.embed(codes) + self.place(torch.arange(codes.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def digits(sites: int, seed: int) -> tuple[list[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Each site's images, unevenly dealt out, and a fifth that nobody trains on."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    from firesteel.data import partition

    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    X, held_X, y, held_y = train_test_split(X, y, test_size=0.2, stratify=y, random_state=0)
    parts = partition(X, y, sites, by="dirichlet", alpha=1.0, seed=seed, least=20)
    return [{"X": a, "y": b} for a, b in parts.values()], {"X": held_X, "y": held_y}


def text(sites: int) -> tuple[list[dict[str, np.ndarray]], dict[str, np.ndarray], int]:
    """Python's own manual, as its interpreter carries it: a part for each site, a
    tenth that nobody trains on, and the number of characters."""
    from pydoc_data.topics import topics

    joined = "\n".join(topics[name] for name in sorted(topics))
    alphabet = sorted(set(joined))
    codes = np.array([alphabet.index(c) for c in joined], np.uint8)
    held = len(codes) // 10
    parts = np.array_split(codes[:-held], sites)
    return [{"codes": part} for part in parts], {"codes": codes[-held:]}, len(alphabet)


def windows(codes: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Stretches of one character more than a context."""
    return torch.stack([codes[at : at + CONTEXT + 1] for at in starts.tolist()]).long()


def language_loss(net: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of the next character."""
    scores = net(batch[:, :-1])
    return nn.functional.cross_entropy(scores.reshape(-1, scores.shape[-1]), batch[:, 1:].reshape(-1))
