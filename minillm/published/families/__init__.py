"""The published models that are understood, one table a family. A new one is a table here, not code elsewhere."""

from minillm.published.families.base import Family
from minillm.published.families.bert import CAMEMBERT, DISTILBERT, FAMILY_BERT, ROBERTA, XLM_ROBERTA
from minillm.published.families.gpt import GPT2, LLAMA, MISTRAL, QWEN2, QWEN3
from minillm.published.families.modernbert import MODERNBERT

DECODERS = (GPT2, LLAMA, MISTRAL, QWEN2, QWEN3)
ENCODERS = (FAMILY_BERT, ROBERTA, XLM_ROBERTA, CAMEMBERT, DISTILBERT, MODERNBERT)
FAMILIES: dict[str, Family] = {family.model_type: family for family in (*DECODERS, *ENCODERS)}
