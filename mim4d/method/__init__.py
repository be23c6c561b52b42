"""The method of MIM4D (arXiv 2403.08760), in reading order. A :class:`~mim4d.clip.Clip` passes through

1. ``mask``: choose the patches that stay visible and the frame that is dropped;
2. :meth:`mim4d.MIM4DEncoder.forward_masked`: encode the visible patches;
3. ``neck``: fill the hidden sites with mask tokens and join the stages at one stride;
4. ``lift``: build one voxel volume per frame;
5. ``warp``: resample the volumes of the other frames in the target's ego frame;
6. ``temporal`` (with ``deformable``): rebuild the dropped frame's volume from them;
7. ``rays``, ``sampling``, ``field``, ``render``: render colour and depth along rays;
8. ``losses``: compare rendered colour and depth with observations.

``model`` holds the whole forward pass, ``rng`` the random numbers. This package needs ``pip install mim4d[pretrain]``;
:mod:`mim4d.pretrain` trains the model. Axis letters of shapes are listed in :mod:`mim4d.geometry`.
"""
