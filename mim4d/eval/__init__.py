"""What a backbone is worth downstream: BEV segmentation, 3D detection and HD maps, by small reference models.

Read in this order: ``labels`` (what is true of a sample), ``augmentation``, ``data`` (clips with their labels,
shares of them), ``view`` (image features from above), ``model`` (any timm backbone under it), the tasks
``segmentation``, ``detection`` and ``hdmap`` (each with its targets, head, loss, scores and picture), ``run`` (training
and scoring) and ``cli`` (``mim4d-eval``).
"""
