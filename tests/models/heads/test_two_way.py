import torch

from mllm.models.heads.two_way import TwoWayTransformer, positions


def test_positions_differ_and_are_equal_in_every_process():
    positions_ND = positions(6, 32)
    assert positions_ND.shape == (36, 32) and torch.equal(positions_ND, positions(6, 32))
    distances = torch.cdist(positions_ND, positions_ND) + torch.eye(36) * 99
    assert distances.min() > 0.1


def test_tokens_and_features_attend_to_each_other():
    torch.manual_seed(0)
    model = TwoWayTransformer(32, depth=2, heads=4).eval()
    tokens, features, positions_ND = torch.randn(2, 4, 32), torch.randn(2, 9, 32), positions(3, 32)
    new_tokens, new_features = model(tokens, features, positions_ND)
    assert new_tokens.shape == tokens.shape and new_features.shape == features.shape
    changed = features.clone()
    changed[1, 4] += 1
    assert torch.allclose(model(tokens, changed, positions_ND)[0][0], new_tokens[0])
    assert not torch.allclose(model(tokens, changed, positions_ND)[0][1], new_tokens[1], atol=1e-4)
