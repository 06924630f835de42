"""A small perceptron in plain NumPy: 64 pixels, one hidden layer, 10 digits."""

import numpy as np

HIDDEN = 32


def init_params(seed=0):
    """The weights that training starts from."""
    draw = np.random.RandomState(seed)

    def layer(inputs, outputs):
        scale = np.sqrt(2.0 / inputs)
        return (draw.randn(inputs, outputs) * scale).astype(np.float32)

    return {
        "hidden.weight": layer(64, HIDDEN),
        "hidden.bias": np.zeros(HIDDEN, np.float32),
        "output.weight": layer(HIDDEN, 10),
        "output.bias": np.zeros(10, np.float32),
    }


def forward(params, X):
    """The hidden layer's activations and the probability of every digit."""
    hidden = np.maximum(X @ params["hidden.weight"] + params["hidden.bias"], 0)
    scores = hidden @ params["output.weight"] + params["output.bias"]
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, scores / scores.sum(axis=1, keepdims=True)


def train(params, X, y, *, epochs=1, lr=0.1, batch=16):
    """Stochastic gradient descent on the cross-entropy; changes `params` in place."""
    for _ in range(epochs):
        order = np.random.permutation(len(y))
        for start in range(0, len(y), batch):
            at = order[start : start + batch]
            hidden, slope = forward(params, X[at])
            slope[np.arange(len(at)), y[at]] -= 1
            slope /= len(at)
            back = (slope @ params["output.weight"].T) * (hidden > 0)
            params["output.weight"] -= lr * (hidden.T @ slope)
            params["output.bias"] -= lr * slope.sum(axis=0)
            params["hidden.weight"] -= lr * (X[at].T @ back)
            params["hidden.bias"] -= lr * back.sum(axis=0)
    return params


def accuracy(params, X, y):
    """The share of images that are recognized."""
    return float((forward(params, X)[1].argmax(axis=1) == y).mean())
