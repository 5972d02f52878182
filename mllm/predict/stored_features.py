"""Features of images of a frozen vision tower, which are computed once for each image and stored on disk."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader

from mllm.config.schema import RunConfig
from mllm.dataset.base import SampleDataset
from mllm.dataset.changing_images import has_changing_images
from mllm.dataset.progress import with_progress
from mllm.engine.cache_room import CacheRoom
from mllm.engine.feature_cache import FeatureCache, fingerprint
from mllm.engine.feature_computer import accepts_features
from mllm.models.encoding.chat import ChatEncoder
from mllm.models.generation.generate import evaluating
from mllm.models.language_model import LanguageModel
from mllm.predict.feature_filler import Counts, Draws, Filler, MissingImages, RowDraws
from mllm.private_messages import worker_setup
from mllm.protocols import Bundle
from mllm.run_files import VISION_CACHE

logger = logging.getLogger(__name__)
GIGABYTE = 10**9
OTHER_PARTS = frozenset({"language", "heads", "rows"})
"""Parts of a model that features of images do not depend on."""
OTHER_SETTINGS = frozenset({"text_config", "use_cache", "_name_or_path", "transformers_version"})
"""Keys of config.json that features of images do not depend on."""


def store_test_features(config: RunConfig, bundle: Bundle, split: SampleDataset, name: str = "test") -> None:
    """Store the features of the images of a split that is evaluated, and let the encoder read them.

    Every process computes its share, and all of them must call this function. `name` is that of the split.
    """
    if is_possible(config, bundle, split, name):
        store_features(config, bundle, share_of_rows(split), bundle.model.computing(), name)


def share_of_rows(split: SampleDataset) -> RowDraws:
    """Return this process's share of the rows of a split, of a mixture those of all its datasets, in epoch 0."""
    state = PartialState()
    return RowDraws(islice(split.rows(), state.process_index, None, state.num_processes))


def is_possible(config: RunConfig, bundle: Bundle, split: SampleDataset | None, name: str = "train") -> bool:
    """Return True if the features of images can be stored. Otherwise log the reason, if the model reads images.

    Args:
        config: The config.
        bundle: Model and encoder.
        split: The split; None: there is none.
        name: Name of the split, for the log.
    """
    if not isinstance(bundle.model, LanguageModel) or not isinstance(bundle.encoder, ChatEncoder):
        return False
    if not bundle.encoder.image_token_ids or split is None:
        return False
    bundle.encoder.stored_features = None
    reason = _obstacle(config, bundle.model)
    if reason is None and has_changing_images(split):
        reason = "images change between epochs (transforms)"
    if reason is not None:
        logger.info("features of the images of %s are not stored, because %s", name, reason)
    return reason is None


def _obstacle(config: RunConfig, model: LanguageModel) -> str | None:
    """Return the reason why the features of an image are not the same in every update, or None."""
    if not config.data_args.vision_cache:
        return "data_args.vision_cache is False"
    if config.privacy_args is not None and not config.is_written("data_args", "vision_cache"):
        return "the run is private: data_args.vision_cache=True stores features of private images on this machine"
    trained = {model.tower_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    if trained - OTHER_PARTS:
        return f"weights that they depend on train ({', '.join(sorted(trained - OTHER_PARTS))})"
    if model.layers is not None:
        return "a head reads inner layers of the vision tower"
    if not accepts_features(model):
        return f"{type(model.pretrained).__name__} does not accept them"
    if _has_dropout(model):
        return "the vision tower has dropout"
    return None


def _has_dropout(model: LanguageModel) -> bool:
    """Return True if a part that reads images is random in training."""
    layers = any(
        isinstance(module, nn.Dropout) and module.p > 0
        for name, module in model.named_modules()
        if model.tower_of(f"{name}.weight") not in OTHER_PARTS
    )
    vision = model.pretrained.config.to_dict().get("vision_config") or {}
    return layers or any("drop" in key and isinstance(value, float) and value > 0 for key, value in vision.items())


def store_features(
    config: RunConfig, bundle: Bundle, draws: Draws, precision: AbstractContextManager[Any], splits: str
) -> None:
    """Compute the features of images that are not stored yet, and let the encoder read them. Log the counts.

    All processes must call this function; it returns when all of them have computed their share.

    Args:
        config: The config.
        bundle: Model and encoder.
        draws: Samples of this process.
        precision: Context in which the model will read the features, such as autocast.
        splits: Names of the splits of the samples, for the log.
    """
    model, encoder, state = bundle.model, bundle.encoder, PartialState()
    assert isinstance(model, LanguageModel) and isinstance(encoder, ChatEncoder)
    model.to(state.device)
    with evaluating(model), torch.no_grad(), precision:
        cache = FeatureCache(VISION_CACHE, _fingerprint(model, encoder))
        room = CacheRoom(cache.folder, int(config.data_args.vision_cache_gb * GIGABYTE), state.num_processes)
        filler = Filler(bundle, cache, room)
        loader = DataLoader(
            MissingImages(draws, encoder, cache),
            batch_size=None,
            num_workers=config.training_args["dataloader_num_workers"],
            worker_init_fn=worker_setup(),
            generator=torch.Generator().manual_seed(0),  # the default one is that of dropout
        )
        for item in with_progress(loader, "image features"):
            if item is not None:
                filler.add(item)
    counts = Counts(*(sum(gather_object([count])) for count in vars(filler.counts).values()))
    state.wait_for_everyone()
    if filler.computer.is_refused:
        logger.info(
            "features of the images of %s are not stored, because this model reads them otherwise than pixels", splits
        )
        return
    encoder.stored_features = cache
    _log(config, counts, splits)


def _fingerprint(model: LanguageModel, encoder: ChatEncoder) -> str:
    """Return a hash of everything that features of images depend on besides the images."""
    device = PartialState().device.type
    settings = model.pretrained.config.to_dict()
    return fingerprint(
        model,
        reads=lambda name: model.tower_of(name) not in OTHER_PARTS,
        config={name: value for name, value in settings.items() if name not in OTHER_SETTINGS},
        processor=encoder.processor.to_dict(),
        square=[encoder.marks.pad_to_square, encoder.marks.background],
        autocast=torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None,
    )


def _log(config: RunConfig, counts: Counts, splits: str) -> None:
    """Log the numbers of samples whose features were found, computed, or left out."""
    logger.info(
        "features of the images of %s in %s: %d samples found, %d computed; the vision tower does not run for them",
        *(splits, VISION_CACHE, counts.found, counts.computed),
    )
    if counts.without_room:
        logger.warning(
            "the features of %d samples of %s do not fit into data_args.vision_cache_gb=%g and are computed each time: "
            "raise it, or set data_args.vision_cache=False",
            *(counts.without_room, splits, config.data_args.vision_cache_gb),
        )
