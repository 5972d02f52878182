"""Registration of the model families of this package: one import for each record."""

from mllm.models.auto import family as auto
from mllm.models.gemma3n import family as gemma3n
from mllm.models.medgemma import family as medgemma
from mllm.models.shikra import family as shikra
from mllm.models.siglip import family as siglip
from mllm.models.text import family as text

RECORDS = (
    *(medgemma.MEDGEMMA, auto.IMAGE_TEXT, shikra.SHIKRA, shikra.PERCEPTION_GPT),
    *(text.CAUSAL_LM, text.SEQ2SEQ, gemma3n.GEMMA3N_STUDENT, siglip.MEDSIGLIP),
)
"""Records in the order of the registry."""
