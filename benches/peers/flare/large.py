"""The server's part of the large job for FLARE: a model of noise that is never saved.

FLARE copies this file into the job, so that it stands alone.
"""

import json
import time

import numpy as np
from nvflare.apis.event_type import EventType
from nvflare.app_common.abstract.model import ModelLearnableKey, make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor
from nvflare.app_common.app_event_type import AppEventType


class NoisePersistor(ModelPersistor):
    """Makes the model, and notes when each round begins and what came of it.

    It writes no checkpoint: that would be a cost of the job, not of FLARE.
    """

    def __init__(self, megabytes, tensors, marks):
        super().__init__()
        self.megabytes = megabytes
        self.tensors = tensors
        self.marks = marks
        self.first = None

    def load_model(self, fl_ctx):
        numbers = self.megabytes * (1 << 20) // 4 // self.tensors
        draw = np.random.default_rng(7)
        weights = {
            f"layer_{index:04}": draw.random(numbers, dtype=np.float32)
            for index in range(self.tensors)
        }
        self.first = float(weights["layer_0000"][0])
        self.mark("loaded", 0.0)
        return make_model_learnable(weights=weights, meta_props={})

    def save_model(self, model, fl_ctx):
        first = float(model[ModelLearnableKey.WEIGHTS]["layer_0000"][0])
        self.mark("round done", first - self.first)

    def handle_event(self, event_type, fl_ctx):
        if event_type == AppEventType.ROUND_STARTED:
            self.mark("round", None)
        elif event_type == EventType.END_RUN:
            self.mark("end", None)

    def mark(self, what, gained):
        """One line of JSON; the clock is the machine's, as the bench's own."""
        with open(self.marks, "a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, "at": time.time(), "gained": gained}) + "\n")
