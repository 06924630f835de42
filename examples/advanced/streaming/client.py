"""site-1 offers a model in four ways, one after another; site-2 fetches it."""

import argparse
import os
import time

import model as decoder
import watch

import firesteel
import firesteel.client as flare
from firesteel import stream

HOUR = 3600.0


def offer(way, hidden, layers):
    """The sender's side of one way: its figures."""
    entries = decoder.tensors(hidden, layers)
    # The first two are told of an object that lies in memory; a file lies on disk.
    whole = dict(entries) if way in ("plain", "container") else None
    if way == "file":
        firesteel.save_model("model.safetensors", dict(entries))
    start = time.monotonic()
    with watch.Peak() as peak:
        if way == "plain":
            ref = stream.offer(whole, name=way)
        elif way == "container":
            ref = stream.offer(whole.items(), name=way)
        elif way == "file":
            ref = stream.offer("model.safetensors", name=way)
        else:
            ref = stream.offer(entries, name=way)
    # The receiver says when it is done: the ways do not share the machine.
    for end in stream.retrieve("site-2", f"got-{way}", wait=HOUR):
        took = float(end) - start
    # Its place on disk is free again.
    stream.withdraw(ref)
    if way == "file":
        os.unlink("model.safetensors")
    return {f"{way}_seconds": took, f"{way}_sender": peak.bytes}


def fetch(way):
    """The receiver's side: every tensor is read."""
    with watch.Peak() as peak:
        if way == "file":
            path = stream.retrieve("site-1", way, path="fetched.safetensors", wait=HOUR)
            got = firesteel.load_model(path)
        else:
            got = stream.retrieve("site-1", way, wait=HOUR)
        entries = got.items() if isinstance(got, dict) else got
        for number, (_, tensor) in enumerate(entries):
            decoder.check(number, tensor)
    end = time.monotonic()
    del entries, got, tensor
    if way == "file":
        os.unlink(path)
    stream.offer([repr(end).encode()], name=f"got-{way}")
    return {f"{way}_receiver": peak.bytes}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    args = parser.parse_args()
    flare.init()
    while flare.is_running():
        model = flare.receive()
        figures = {}
        for way in decoder.WAYS:
            if flare.get_site_name() == "site-1":
                figures.update(offer(way, args.hidden, args.layers))
            else:
                figures.update(fetch(way))
        steps = {"NUM_STEPS_CURRENT_ROUND": 1}
        flare.send(flare.FLModel(params=model.params, metrics=figures, meta=steps))


main()
