"""In a sub folder: finds its neighbours and what is beside the settings file."""

import functions
import neighbour


def call(event):
    return {"type": neighbour.TYPE, "data": functions.__name__}
