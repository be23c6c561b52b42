"""A command writes nowhere but where its user has named."""

import pytest

from mim4d.errors import UserError
from mim4d.eval import config as downstream
from mim4d.pretrain import config as pretrain


@pytest.mark.parametrize("out", ["", " "])
def test_an_empty_folder_name_is_not_the_working_folder(out):
    with pytest.raises(UserError, match="--out is empty"):
        pretrain.complete(pretrain.PretrainConfig(data="synthetic", out=out))
    with pytest.raises(UserError, match="--out is empty"):
        downstream.complete(downstream.EvalConfig(task="bev-seg", data="synthetic", out=out))
