"""BEVFormer-tiny with an mim4d backbone: copy this file next to bevformer_tiny.py in projects/configs/bevformer/.

It replaces the codebase's ResNet-50. The same lines, with other channels, work in every config that builds its backbone
by OpenMMLab's registry: see docs/integrations.md.
"""

_base_ = ["./bevformer_tiny.py"]

custom_imports = dict(imports=["mim4d.integrations.openmmlab"])  # changed line 1 of 2: registers MIM4DEncoder
model = dict(
    pretrained=None,  # otherwise the new backbone would load a ResNet's weights
    img_backbone=dict(  # changed line 2 of 2: the backbone and its weights
        _delete_=True,
        type="MIM4DEncoder",
        arch="convnext_small",
        out_indices=(3,),
        frozen_stages=1,
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="runs/pretrain/encoder"),  # or "org/name" on the Hub
    ),
    img_neck=dict(in_channels=[768]),  # the channels of the last stage of arch
)
