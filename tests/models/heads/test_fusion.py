import torch

from mllm.models.heads import LayerFusion


def test_the_initial_mixture_of_layers_is_uniform():
    fusion, layers = LayerFusion(3), [torch.full((2, 2), float(i)) for i in (1, 2, 6)]
    assert torch.allclose(fusion(layers), torch.full((2, 2), 3.0))
    with torch.no_grad():
        fusion.coefficients[2] = 50.0
    assert torch.allclose(fusion(layers), torch.full((2, 2), 6.0))
    assert fusion([layer.bfloat16() for layer in layers]).dtype == torch.bfloat16
