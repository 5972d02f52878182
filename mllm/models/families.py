"""Registration of the model families of this package."""

from mllm.family import FAMILIES
from mllm.models.auto.family import IMAGE_TEXT
from mllm.models.gemma3n.family import GEMMA3N_STUDENT
from mllm.models.medgemma.family import MEDGEMMA
from mllm.models.shikra.family import PERCEPTION_GPT, SHIKRA
from mllm.models.siglip.family import MEDSIGLIP
from mllm.models.text.family import CAUSAL_LM, SEQ2SEQ

# Records of any architecture come first, because `FAMILIES.for_architecture` uses the last record that matches.
for record in (IMAGE_TEXT, MEDGEMMA, SHIKRA, PERCEPTION_GPT, CAUSAL_LM, SEQ2SEQ, GEMMA3N_STUDENT, MEDSIGLIP):
    FAMILIES.register(record)
