"""The tensors of a GPT-like decoder, one at a time, and the ways they are sent."""

import numpy as np

VOCABULARY = 50_257
WAYS = ("plain", "container", "file", "iterable")


def shapes(hidden, layers):
    """Name and shape of every tensor; 2048 and 24 make 1.3 billion numbers."""
    yield "embedding", (VOCABULARY, hidden)
    for layer in range(layers):
        yield f"layers.{layer}.attention.in", (3 * hidden, hidden)
        yield f"layers.{layer}.attention.out", (hidden, hidden)
        yield f"layers.{layer}.up", (4 * hidden, hidden)
        yield f"layers.{layer}.down", (hidden, 4 * hidden)
        yield f"layers.{layer}.norms", (4, hidden)
    yield "norm", (2, hidden)


def tensors(hidden, layers):
    """The same with values: every tensor is filled with its own number."""
    for number, (name, shape) in enumerate(shapes(hidden, layers)):
        yield name, np.full(shape, number % 7, np.float32)


def check(number, tensor):
    """Reads a whole tensor, and is sure of it."""
    assert float(tensor.max()) == float(tensor.min()) == number % 7


def size(hidden, layers):
    """How many numbers, and how many bytes."""
    count = sum(int(np.prod(shape)) for _, shape in shapes(hidden, layers))
    return count, 4 * count
