import pytest
import torch

from mllm.errors import ConfigError
from mllm.models.heads import BoxHead, VisionShape
from mllm.objectives.boxes import giou


def trained(head: BoxHead, states: torch.Tensor, boxes: torch.Tensor, steps: int = 150) -> torch.Tensor:
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = (1 - giou(head.predict(states), boxes)).mean() + (head.predict(states) - boxes).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.predict(states).detach()


def random_boxes(*shape: int) -> torch.Tensor:
    corners = torch.rand(*shape, 2, 2).sort(dim=-2).values * 0.7
    corners[..., 1, :] += 0.2
    return corners.flatten(-2)


def test_initial_boxes_are_centered_and_depend_on_the_state():
    torch.manual_seed(0)
    head, states, boxes = BoxHead(32, hidden=64), torch.randn(3, 2, 32), random_boxes(3, 2)
    assert torch.allclose(head.predict(states), torch.tensor([0.25, 0.25, 0.75, 0.75]).expand(3, 2, 4))
    actual = trained(head, states, boxes)
    assert giou(actual, boxes).min() > 0.8
    assert (actual[..., 2:] >= actual[..., :2]).all()


def test_written_boxes_differ_and_are_fp32_under_autocast():
    torch.manual_seed(0)
    head = BoxHead(32)
    with torch.autocast("cpu", torch.bfloat16):
        written, read = head.embed(random_boxes(1, 2)), head.predict(torch.randn(1, 2, 32, dtype=torch.bfloat16))
    assert written.dtype == read.dtype == torch.float32
    assert written.shape == (1, 2, 32) and not torch.allclose(written[0, 0], written[0, 1])


def test_a_box_is_read_from_the_outline_of_a_mask():
    torch.manual_seed(0)
    head = BoxHead(16, hidden=64, outline=True, mask_size=16)
    boxes = random_boxes(1, 24)
    edges = torch.arange(16) / 16
    inside = [(edges >= boxes[..., i, None]) & (edges <= boxes[..., i + 2, None]) for i in (0, 1)]
    masks = 12.0 * (inside[1][..., :, None] & inside[0][..., None, :]).float() - 6
    states = torch.randn(1, 1, 16).expand(1, 24, 16)  # equal words: only the masks differ
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(200):
        loss = (head.predict(states, masks) - boxes).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert giou(head.predict(states, masks), boxes).mean() > 0.7


def test_masks_are_left_to_their_own_loss():
    masks = torch.randn(1, 1, 8, 8, requires_grad=True)
    head = BoxHead(16, outline=True, mask_size=8)
    with torch.no_grad():
        head.reader[-1].weight.normal_()
    head.predict(torch.randn(1, 1, 16), masks).sum().backward()
    assert masks.grad is None and head.reader[0].weight.grad.any()


def test_an_outline_needs_a_mask_head():
    with pytest.raises(ConfigError, match="has no MaskHead"):
        BoxHead(16, outline=True)


def test_a_box_is_found_by_attention_when_the_state_does_not_know_its_place():
    """Equal states and a bright square in noise: only the image tells the boxes apart, also those of new images."""
    torch.manual_seed(0)
    head = BoxHead(16, hidden=64, vision=VisionShape(width=12, layers=2, grid=8), attention=16)
    state, brightness = torch.randn(1, 1, 16), torch.randn(12)

    def scene(images: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        corner = torch.randint(0, 6, (images, 2))
        edges = torch.arange(8)
        is_in = [(edges >= corner[:, i, None]) & (edges < corner[:, i, None] + 3) for i in (0, 1)]
        square = (is_in[1][:, :, None] & is_in[0][:, None, :]).float().flatten(1)
        layers = [torch.randn(images, 64, 12) + 3 * square[..., None] * brightness for _ in range(2)]
        return torch.cat([corner, corner + 3], dim=1)[:, None] / 8, layers

    def predict(layers: list[torch.Tensor]) -> torch.Tensor:
        images = torch.arange(len(layers[0]))[:, None]
        return head.predict(state.expand(len(images), 1, 16), None, head.features(layers), images)

    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(200):
        boxes, layers = scene(32)
        loss = (predict(layers) - boxes).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    boxes, layers = scene(32)
    assert giou(predict(layers), boxes).min() > 0.7
    swapped = head.predict(state.expand(2, 1, 16), None, head.features(layers), torch.tensor([[1], [0]]))
    torch.testing.assert_close(swapped, predict(layers)[[1, 0]])


def test_a_width_of_attention_below_1_is_refused():
    with pytest.raises(ConfigError, match="attention of a BoxHead is a width of at least 1, or None, not 0"):
        BoxHead(16, vision=VisionShape(width=12, layers=2, grid=8), attention=0)
