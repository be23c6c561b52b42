"""Pretraining, in the order of the data's way through it: a :class:`~mim4d.clip.Clip` goes through

1. ``mask.py``: which patches stay visible, which frame is dropped;
2. :meth:`mim4d.MIM4DEncoder.forward_masked`: features of the visible patches;
3. ``neck.py``: mask tokens into the gaps, stages joined;
4. ``lift.py``: one voxel volume a frame;
5. ``warp.py``: other frames' volumes into the target's ego frame;
6. ``temporal.py``: the dropped volume rebuilt from them;
7. ``rays.py``, ``sampling.py``, ``field.py``, ``render.py``: colour and depth along rays;
8. ``losses.py``: rendered against seen.

``model.py`` holds the whole forward pass; ``trainer.py`` runs it. Needs ``pip install mim4d[pretrain]``.
"""
