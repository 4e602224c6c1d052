"""Trains the whole family: codec, vision encoder, then text encoders with the UNet.

    python -m small_world.drive --folder FOLDER

Finished phases are passed over and an unfinished one continues, so the same command starts it and goes on after a kill.
"""

import argparse

from .train_base import train_base
from .train_codec import train_codec
from .train_vision import train_vision
from .training import start


def main() -> None:
    folder = start(argparse.ArgumentParser(description=__doc__)).folder
    for train in (train_codec, train_vision, train_base):
        if not train(folder):
            return


if __name__ == "__main__":
    main()
