"""The method of MIM4D (arXiv 2403.08760), in reading order. A :class:`~mim4d.clip.Clip` goes through

1. ``mask``: which patches stay visible, which frame is dropped;
2. :meth:`mim4d.MIM4DEncoder.forward_masked`: features of the visible patches;
3. ``neck``: mask tokens into the gaps, stages joined at one stride;
4. ``lift``: one voxel volume per frame;
5. ``warp``: other frames' volumes into the target's ego frame;
6. ``temporal``: the dropped frame's volume rebuilt from them;
7. ``rays``, ``sampling``, ``field``, ``render``: colour and depth along rays;
8. ``losses``: compares rendered colour and depth with observations.

``model`` holds the whole forward pass. Needs ``pip install mim4d[pretrain]``; :mod:`mim4d.pretrain` trains it.
"""
