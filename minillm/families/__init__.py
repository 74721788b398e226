"""The published models that are understood, one table a family. A new one is a table here, not code elsewhere."""

from minillm.families.base import Family
from minillm.families.bert import DISTILBERT, FAMILY_BERT, MODERNBERT, ROBERTA
from minillm.families.gpt import GPT2, LLAMA, QWEN2, QWEN3

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (GPT2, LLAMA, QWEN2, QWEN3, FAMILY_BERT, ROBERTA, DISTILBERT, MODERNBERT)
}
