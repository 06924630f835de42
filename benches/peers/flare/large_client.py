"""The large job's trainer, for FLARE: adds one to every weight, in place."""

import nvflare.client as flare


def main() -> None:
    flare.init()
    while flare.is_running():
        model = flare.receive()
        for value in model.params.values():
            value += 1
        flare.send(flare.FLModel(params=model.params))


if __name__ == "__main__":
    main()
