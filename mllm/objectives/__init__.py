"""Terms of the training loss."""

from mllm.objectives import boxes as boxes
from mllm.objectives import features as features
from mllm.objectives import logits as logits
from mllm.objectives import masks as masks
from mllm.objectives import measures as measures
from mllm.objectives import text as text
from mllm.objectives.base import Objective as Objective
