"""Evaluation of backbones on BEV segmentation, 3D detection and HD maps, with small reference models.

Read in this order: ``labels`` (ground truth), ``augmentation``, ``data`` (clips with their labels,
fractions of them), ``view`` (image features from above), ``model`` (any timm backbone under it), the tasks
``segmentation``, ``detection`` and ``hdmap`` (each with its targets, head, loss, scores and picture), ``run`` (training
and scoring), ``compare`` (runs of several backbones), ``paired`` and ``panels`` (their table and plot) and ``cli``
(``mim4d-eval``).
"""
