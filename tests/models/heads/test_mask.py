import pytest
import torch

from mllm.errors import ConfigError
from mllm.models.heads import MaskHead, VisionShape
from mllm.objectives.masks import soft_dice

GRID, WIDTH = 8, 16


def head(**options) -> MaskHead:
    torch.manual_seed(0)
    return MaskHead(WIDTH, VisionShape(width=12, layers=2, grid=GRID), dim=32, heads=4, **options)


def scene() -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Return two images of two discs each; the hidden state determines the first or the second disc."""
    y, x = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(32) + 0.5, indexing="ij")
    centers = torch.tensor([[[8.0, 8.0], [22.0, 20.0]], [[22.0, 9.0], [9.0, 22.0]]])
    masks = torch.stack([torch.stack([(x - cx) ** 2 + (y - cy) ** 2 < 36 for cx, cy in image]) for image in centers])
    kinds = torch.nn.functional.avg_pool2d(masks.float(), 4).flatten(2).transpose(1, 2)  # [V, N, 2]
    layers = [torch.cat([kinds, 0.1 * torch.randn(2, GRID**2, 10)], dim=-1) for _ in range(2)]
    states = torch.randn(1, 2, 1, WIDTH).expand(2, 2, 1, WIDTH)
    return states, layers, masks


@pytest.mark.parametrize("context", [1, 3])
def test_training_distinguishes_two_discs(context):
    """With a context, only a word before the object's token determines the disc."""
    mask_head, (states, layers, masks) = head(context=context), scene()
    if context > 1:
        others = torch.randn(1, 1, context - 1, WIDTH).expand(2, 2, context - 1, WIDTH)
        states = torch.cat([others[:, :, :1], states, others[:, :, 1:]], dim=2)
    optimizer = torch.optim.Adam(mask_head.parameters(), lr=2e-3)
    images = torch.tensor([[0, 0], [1, 1]])
    for _ in range(120):
        logits = mask_head.predict(states, mask_head.features(layers), images)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, masks.float())
        loss = loss + (1 - soft_dice(logits.sigmoid(), masks.float())).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    predicted = mask_head.predict(states, mask_head.features(layers), images) > 0
    iou = (predicted & masks).sum(dim=(-2, -1)) / (predicted | masks).sum(dim=(-2, -1))
    assert logits.shape == (2, 2, 4 * GRID, 4 * GRID) and mask_head.size == 4 * GRID
    assert iou.min() > 0.8


def test_objects_are_independent_and_use_their_own_image():
    mask_head, (states, layers, _) = head(), scene()
    features = mask_head.features(layers)
    together = mask_head.predict(states, features, torch.tensor([[0, 0], [1, 1]]))
    alone = mask_head.predict(states[1:, 1:], features[1:], torch.tensor([[0]]))
    assert torch.allclose(together[1, 1], alone[0, 0], atol=1e-5)
    other = mask_head.predict(states, features, torch.tensor([[1, 0], [1, 1]]))
    assert not torch.allclose(together[0, 0], other[0, 0]) and torch.allclose(together[0, 1], other[0, 1], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("context", [1, 3])
def test_every_parameter_has_a_gradient_and_computes_in_fp32(dtype, context):
    mask_head, (states, layers, masks) = head(context=context), scene()
    states = states.repeat(1, 1, context, 1)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        features = mask_head.features([layer.to(dtype) for layer in layers])
        logits = mask_head.predict(states.to(dtype), features, torch.tensor([[0, 0], [1, 1]]))
        written = mask_head.embed(masks)
    assert logits.dtype == written.dtype == torch.float32 and written.shape == (2, 2, WIDTH)
    (logits.square().sum() + written.square().sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in mask_head.parameters())
    silent = [name for name, parameter in mask_head.named_parameters() if not parameter.grad.any()]
    assert not [name for name in silent if "in_proj_bias" not in name], silent


def test_context_tokens_differ_by_their_distance():
    mask_head, (states, layers, _) = head(context=3), scene()
    words = torch.cat([torch.randn(2, 2, 2, WIDTH), states], dim=2)
    features, images = mask_head.features(layers), torch.tensor([[0, 0], [1, 1]])
    swapped = mask_head.predict(words[:, :, [1, 0, 2]], features, images)
    assert (mask_head.predict(words, features, images) - swapped).abs().max() > 1e-3


def test_a_context_of_0_is_refused():
    with pytest.raises(ConfigError, match="context of a MaskHead must be at least 1"):
        head(context=0)
