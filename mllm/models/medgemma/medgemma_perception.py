"""Image size and number of image tokens of Gemma 3, changed from those of the checkpoint.

The SigLIP tower cuts an image of S pixels into S/14 x S/14 patches, and the projector averages them to the tokens that
the language model reads: 64 x 64 patches -> 256 tokens by a kernel of 4 x 4. 128 and 32 tokens need a kernel that is
not square. transformers supports only square ones, so the kernel is stored in `config.json` under `POOL_KEY`, and
`load_gemma3` reads it. transformers itself builds a square kernel and fails at the first image ("Image features and
image tokens do not match").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Gemma3ForConditionalGeneration, Gemma3Processor, PretrainedConfig, ProcessorMixin

from mllm.errors import ConfigError
from mllm.models.backbone.loading import load_model
from mllm.models.medgemma.rules import IMAGE_TOKENS

POOL_KEY = "mllm_image_pool"
"""Key of config.json: [rows, columns] of patches that one token averages, if they differ."""


PROJECTOR = "model.multi_modal_projector"


def load_gemma3(name: str, **options: Any) -> Gemma3ForConditionalGeneration:
    """Load Gemma 3 with images, also with a saved rectangular pool; `options` are those of `load_model`."""
    model = load_model(Gemma3ForConditionalGeneration, name, **options)
    assert isinstance(model, Gemma3ForConditionalGeneration)
    pool = model.config.to_dict().get(POOL_KEY)
    if pool is not None:
        _set_pool(model, (pool[0], pool[1]))
    return model


def pool_kernel(side: int, tokens: int) -> tuple[int, int]:
    """Return the (rows, columns) of patches that one token averages, for `side` x `side` patches and `tokens` tokens.

    Tokens form the grid that is closest to a square, with at least as many rows as columns. Raises `ConfigError` for a
    number of tokens that is not one of `IMAGE_TOKENS` or does not divide the patches.
    """
    allowed = ", ".join(str(length) for length in IMAGE_TOKENS)
    if tokens not in IMAGE_TOKENS:
        raise ConfigError(f"model_args.image_token_len={tokens} is not possible for Gemma 3: choose one of {allowed}")
    grids = [(tokens // columns, columns) for columns in range(1, int(tokens**0.5) + 1) if tokens % columns == 0]
    for rows, columns in reversed(grids):
        if side % rows == 0 and side % columns == 0:
            return side // rows, side // columns
    raise ConfigError(
        f"model_args.image_token_len={tokens} does not divide the {side} x {side} patches of an image_size of "
        f"{side * 14} pixels: choose image_size=896 or 448, or another of {allowed}"
    )


def resample_positions(weight: Tensor, side: int) -> Tensor:
    """Return position embeddings [P, D] of a square grid, resampled to `side` x `side`, in the same dtype.

    Bicubic with antialiasing in fp32, as timm's `resample_abs_pos_embed`; the same grid is returned bit for bit.
    """
    old = round(weight.shape[0] ** 0.5)
    assert old * old == weight.shape[0], "position embeddings of a grid that is not square"
    if old == side:
        return weight
    grid = weight.detach().float().T.reshape(1, -1, old, old)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return grid.flatten(2)[0].T.contiguous().to(weight.dtype)


def shape_images(
    model: Gemma3ForConditionalGeneration, processor: ProcessorMixin, image_size: int | None, tokens: int | None
) -> None:
    """Set the side of images (pixels) and their number of tokens, in place; None keeps the checkpoint's value."""
    assert isinstance(processor, Gemma3Processor)
    if image_size is not None:
        resize_images(model, processor, image_size, tokens)
    elif tokens is not None:
        set_image_tokens(model, processor, tokens)


def shape_processor(
    config: PretrainedConfig, processor: ProcessorMixin, image_size: int | None, tokens: int | None
) -> None:
    """Set the side of images (pixels) and their number of tokens in a processor, in place, for a model with `config`.

    None keeps the checkpoint's value. Raise `ConfigError` if the size is not a multiple of the patch size, or the
    tokens do not divide the patches.
    """
    if image_size is None and tokens is None:
        return
    sizes = config.to_dict()
    vision = sizes["vision_config"]
    if image_size is not None and image_size % vision["patch_size"]:
        raise ConfigError(
            f"model_args.image_size={image_size} is not a multiple of the patch size {vision['patch_size']}: "
            "choose 896 or 448"
        )
    tokens = sizes["mm_tokens_per_image"] if tokens is None else tokens
    assert tokens is not None
    pool_kernel((image_size or vision["image_size"]) // vision["patch_size"], tokens)
    assert isinstance(processor, Gemma3Processor)
    if image_size is not None:
        processor.image_processor.size = {"height": image_size, "width": image_size}
    processor.image_seq_length = tokens
    block = processor.tokenizer.boi_token + processor.tokenizer.image_token * tokens + processor.tokenizer.eoi_token
    processor.full_image_sequence = f"\n\n{block}\n\n"


def resize_images(
    model: Gemma3ForConditionalGeneration, processor: ProcessorMixin, image_size: int, tokens: int | None = None
) -> None:
    """Set the side of images in pixels, in place: position embeddings are resampled.

    An image keeps its number of tokens if `tokens` is None. Raises `ConfigError` if the size is not a multiple of the
    patch size, or the tokens do not divide the patches.
    """
    shape_processor(model.config, processor, image_size, tokens)  # refuse before the model changes
    vision = _vision_config(model)
    side = image_size // vision.patch_size
    tokens = model.config.to_dict()["mm_tokens_per_image"] if tokens is None else tokens
    assert tokens is not None
    embeddings: Any = model.get_submodule("model.vision_tower.embeddings")
    table = embeddings.position_embedding
    weight = resample_positions(table.weight, side)
    table.weight = nn.Parameter(weight, requires_grad=table.weight.requires_grad)
    table.num_embeddings = embeddings.num_patches = embeddings.num_positions = side * side
    embeddings.position_ids = torch.arange(side * side, device=weight.device).expand((1, -1))
    embeddings.image_size = vision.image_size = image_size
    set_image_tokens(model, processor, tokens)


def set_image_tokens(model: Gemma3ForConditionalGeneration, processor: ProcessorMixin, tokens: int) -> None:
    """Set the tokens of one image (256, 128, 64, 32 or 16), in place; model and processor save the number."""
    shape_processor(model.config, processor, None, tokens)
    vision = _vision_config(model)
    model.config.mm_tokens_per_image = tokens
    _set_pool(model, pool_kernel(vision.image_size // vision.patch_size, tokens))


def is_native_image_setup(model: Gemma3ForConditionalGeneration) -> bool:
    """Return True if transformers and other runtimes, which have only square pools, load the saved model correctly."""
    return POOL_KEY not in model.config.to_dict()


def _vision_config(model: Gemma3ForConditionalGeneration) -> Any:
    return model.config.vision_config


def _set_pool(model: Gemma3ForConditionalGeneration, kernel: tuple[int, int]) -> None:
    """Average `kernel` patches to a token; the config stores a kernel that transformers would not derive."""
    vision = _vision_config(model)
    projector: Any = model.get_submodule(PROJECTOR)
    projector.patches_per_image = vision.image_size // vision.patch_size
    projector.tokens_per_side = projector.patches_per_image // kernel[0]
    projector.kernel_size = kernel
    projector.avg_pool = nn.AvgPool2d(kernel_size=kernel, stride=kernel)
    if kernel[0] != kernel[1]:
        setattr(model.config, POOL_KEY, list(kernel))
    elif POOL_KEY in model.config.__dict__:
        delattr(model.config, POOL_KEY)
