"""A straight line through points: y = X @ w + b, in NumPy."""

import numpy as np

FEATURES = 3
TRUE_W, TRUE_B = np.array([1.0, -2.0, 3.0]), 0.5


def init_params():
    """Weights of zero."""
    return {"w": np.zeros(FEATURES), "b": np.zeros(())}


def make_data(site):
    """200 noisy points of the same line, others at every site."""
    draw = np.random.RandomState(sum(site.encode()))
    X = draw.randn(200, FEATURES)
    return X, X @ TRUE_W + TRUE_B + 0.1 * draw.randn(200)


def loss(params, X, y):
    """The mean squared error."""
    return float(np.mean((X @ params["w"] + params["b"] - y) ** 2))


def train(params, X, y, *, steps, lr=0.1):
    """Gradient descent."""
    for _ in range(steps):
        error = X @ params["w"] + params["b"] - y
        params["w"] = params["w"] - lr * 2 * X.T @ error / len(y)
        params["b"] = params["b"] - lr * 2 * error.mean()
    return params
