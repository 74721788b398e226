"""The published models that are understood, one table a family. A new one is a table here, not code elsewhere."""

from minillm.published.families.base import Family
from minillm.published.families.bert import DISTILBERT, FAMILY_BERT, MODERNBERT, ROBERTA
from minillm.published.families.gpt import GPT2, LLAMA, MISTRAL, QWEN2, QWEN3

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (GPT2, LLAMA, MISTRAL, QWEN2, QWEN3, FAMILY_BERT, ROBERTA, DISTILBERT, MODERNBERT)
}
