"""BEVFormer-tiny on our backbone: put this file beside bevformer_tiny.py in projects/configs/bevformer/.

The same lines, with other channels, serve every config that builds its backbone by OpenMMLab's registry: see
docs/integrations.md. In place of the codebase's own ResNet-50:
"""

_base_ = ["./bevformer_tiny.py"]

custom_imports = dict(imports=["mim4d.integrations.openmmlab"])  # changed line 1 of 2: registers MIM4DEncoder
model = dict(
    pretrained=None,  # it would point the new backbone at a ResNet's weights
    img_backbone=dict(  # changed line 2 of 2: which backbone, and its weights
        _delete_=True,
        type="MIM4DEncoder",
        arch="convnext_small",
        out_indices=(3,),
        frozen_stages=1,
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="runs/pretrain/encoder"),  # or "org/name" on the Hub
    ),
    img_neck=dict(in_channels=[768]),  # follows from arch: the channels of its last stage
)
