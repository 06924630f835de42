"""The trivial trainer: adds one to every weight."""

import firesteel.client as flare


def main() -> None:
    flare.init()
    while flare.is_running():
        model = flare.receive()
        params = {name: value + 1 for name, value in model.params.items()}
        mean = float(next(iter(params.values())).mean())
        flare.send(flare.FLModel(params=params, metrics={"mean": mean}))


if __name__ == "__main__":
    main()
