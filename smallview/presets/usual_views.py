"""Views that more than one preset has."""

from __future__ import annotations

from dataclasses import replace

from smallview.views.view import View

WEAK = View(jitter=0.0, grayscale=0.0, blur=0.0)
WHOLE = replace(WEAK, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
# the two BYOL presets of a view, which ReLICv2 and MoCo v3 take over
STRONG = View(scale=(0.08, 1.0), saturation=0.2, blur=1.0)
SOLARIZED = replace(STRONG, blur=0.1, solarize=0.2)
