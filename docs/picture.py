"""Draws docs/demo.png, the picture of the README, from the demo's experiment: `python docs/picture.py`."""

import dataclasses
from pathlib import Path

import jaxinterp as ji
from jaxinterp.cli.demo import experiment, picture
from jaxinterp.views.png import save_png

whole = picture(experiment(ji.load("smollm2-135m-instruct")), {})
told = [dataclasses.replace(part, views=tuple(view for view in part.views if view.kind != "heatmap")) for part in whole.sections]
save_png(dataclasses.replace(whole, title="", sections=(told[0], told[1], told[3])), Path(__file__).parent / "demo.png", dpi=110)
