"""Names of the layers of a LoRA as they are written, without PEFT's conversion from older versions of transformers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import transformers_weight_conversion as conversion
from torch import nn

from mllm.models.adapters.targets import ADAPTABLE


@contextmanager
def names_as_written() -> Iterator[None]:
    """Let PEFT use the names of layers in targets and tensors as they are.

    PEFT converts both for some architectures as if they were written for transformers 4, where experts were Linear
    layers. Of targets it keeps the last part of each name only. So a dense MLP or a shared expert becomes all fused
    experts, and a layer of the language model becomes every layer of this name, also in other towers.
    """
    functions: dict[str, Any] = vars(conversion)
    replaced = {
        "convert_peft_config_for_transformers": lambda config, model, conversions: None,
        "convert_peft_adapter_state_dict_for_transformers": lambda adapter_state_dict, **options: adapter_state_dict,
    }
    originals = {name: functions[name] for name in replaced}
    functions.update(replaced)
    try:
        yield
    finally:
        functions.update(originals)


def changed_by_peft(config: LoraConfig, adapted: PeftModel) -> bool:
    """Return True if `PeftModel.from_pretrained` would adapt other layers than the adapter of `adapted` has."""
    model, converted = adapted.get_base_model(), copy.deepcopy(config)
    conversion.convert_peft_config_for_transformers(converted, model, None)
    layers = [
        name for name, module in model.named_modules() if isinstance(module, LoraLayer) or _is_plain(name, module)
    ]
    before, after = ({name for name in layers if check_target_module_exists(one, name)} for one in (config, converted))
    return before != after or bool(converted.target_parameters)


def _is_plain(name: str, module: nn.Module) -> bool:
    """Return True if a module can have an adapter and is no part of one."""
    return isinstance(module, ADAPTABLE) and not {"base_layer", "lora_A", "lora_B"} & set(name.split("."))
