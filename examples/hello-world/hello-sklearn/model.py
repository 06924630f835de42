"""A linear digit reader: scikit-learn's SGDClassifier and its two arrays."""

import numpy as np
from sklearn.linear_model import SGDClassifier

CLASSES, FEATURES = 10, 64


def init_params():
    """Weights of zero: what the sites start from."""
    return {"coef": np.zeros((CLASSES, FEATURES)), "intercept": np.zeros(CLASSES)}


def make_classifier(params):
    """A classifier with given weights, ready for `partial_fit` and `score`."""
    classifier = SGDClassifier(loss="log_loss", alpha=1e-3, random_state=0)
    classifier.classes_ = np.arange(CLASSES)
    classifier.coef_ = np.array(params["coef"])
    classifier.intercept_ = np.array(params["intercept"])
    classifier.n_features_in_ = FEATURES
    return classifier


def get_params(classifier):
    """What a classifier has learned."""
    return {"coef": classifier.coef_, "intercept": classifier.intercept_}
