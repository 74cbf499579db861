"""CLIP ResNet-50x4 at 288 pixels (Radford et al., arXiv 2103.00020): clip_rn50, four times the compute.

    python -m bigvlm.train --config 'configs/clip_rn50x4.py:data=DIR/*.tar' --workdir runs/clip_rn50x4

A text tower of width 640 and a joint embedding of 640, as released. Not run here.
"""

from configs import clip_rn50, common


def get_config(arg=None):
    c = clip_rn50.get_config(common.fork(arg, 'size=RN50x4,image=288,width=640,out=640'))
    c.about.expected = 'ImageNet zero-shot top-1 66.3 (open_clip results table), not yet run'
    return c
