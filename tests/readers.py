"""What files hold, read with json, csv and numpy alone: the yardstick of mutations.py, slow and plain.

`Wrong` says that a file is to be refused, and what the sentence is to name.
"""

import csv
import io
import json
import math
import re
import unicodedata
from itertools import takewhile

import numpy as np


class Wrong(Exception):
    """Its arguments: what a message must name."""


# ---- data files ----------------------------------------------------------------------------------


def content_of(path):
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Wrong(str(path)) from None
    if "\0" in text:
        raise Wrong(str(path))
    return text


def bare(text):
    """Without what nobody sees at its ends."""
    seen = [i for i, letter in enumerate(text) if not letter.isspace() and unicodedata.category(letter) != "Cf"]
    return text[seen[0] : seen[-1] + 1] if seen else ""


def classify_data(train, dev):
    """The texts and classes of both files; those that are held out are not trained on."""
    found = {"train": examples(train), "dev": examples(dev)}
    classes = {label for _, label in found["train"]}
    if len(classes) < 2:
        raise Wrong(str(train))
    if not {label for _, label in found["dev"]} <= classes:
        raise Wrong(str(dev))
    held_out = {text for text, _ in found["dev"]}
    found["train"] = [row for row in found["train"] if row[0] not in held_out]
    if {label for _, label in found["train"]} != classes:
        raise Wrong(str(train))
    return found


def examples(path):
    rows = list((json_rows if path.suffix == ".jsonl" else table_rows)(path))
    if not rows:
        raise Wrong(str(path))
    return [(text_of(row, path), label_of(row, path)) for row in rows]


def text_of(row, path, name="text"):
    text = row.get(name)
    if not isinstance(text, str) or not bare(text) or (not text.isascii() and "\ud800" in text):
        raise Wrong(str(path))
    return bare(text)


def label_of(row, path):
    label = row.get("label")
    if isinstance(label, int) or (isinstance(label, float) and math.isfinite(label)):
        return json.dumps(label)
    return unicodedata.normalize("NFC", text_of(row, path, "label"))


def json_rows(path):
    def unique(pairs):
        if len(dict(pairs)) < len(pairs):
            raise Wrong(str(path))
        return dict(pairs)

    for line in re.split(r"\r\n?|\n", content_of(path)):
        try:
            row = json.loads(line, object_pairs_hook=unique) if line.strip() else None
        except (ValueError, RecursionError):
            raise Wrong(str(path)) from None
        if line.strip() and not isinstance(row, dict):
            raise Wrong(str(path))
        if row is not None:
            yield row


WHOLE = re.compile('"([^"]|"")*"')  # a cell in quotes, those within it doubled


def table_rows(path):
    text = content_of(path)
    first = next((line for line in re.split(r"\r\n?|\n", text) if bare(line)), "")
    delimiter = "\t" if path.suffix == ".tsv" else max(",;\t|", key=re.sub(r'"[^"]*"', "", first).count)
    csv.field_size_limit(2**31 - 1)
    lines = [line.split("\t") for line in re.split(r"\r\n?|\n", text) if line]
    if delimiter == "\t" and len(set(map(len, lines))) == 1:  # each line is a row, and most quotes are letters
        out = io.StringIO()
        cells = ([c[1:-1].replace('""', '"') if WHOLE.fullmatch(c) else c for c in line] for line in lines)
        csv.writer(out, delimiter="\t", quoting=csv.QUOTE_ALL).writerows(cells)
        text = out.getvalue()
    is_spaced = re.fullmatch(f"[^{delimiter}]*({re.escape(delimiter)} [^{delimiter}]*)+", re.sub(r'"[^"]*"', "", first))
    options = {"delimiter": delimiter, "strict": True, "skipinitialspace": bool(is_spaced)}
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), **options) if any(row)]
    except csv.Error:
        raise Wrong(str(path)) from None
    if not rows:
        return
    header = trimmed([bare(name) for name in rows[0]], 1)
    named = [name for name in header if name]
    if len(set(named)) < len(named):
        raise Wrong(str(path))
    for row in rows[1:]:
        row = trimmed(row, len(header))
        if len(row) != len(header):
            raise Wrong(str(path))
        yield {name: cell for name, cell in zip(header, row, strict=True) if name}


def trimmed(cells, least):
    """Without the empty cells behind the others."""
    while len(cells) > least and not cells[-1]:
        cells = cells[:-1]
    return cells


VOWELS = {"AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"}
CONSONANTS = {*"BDFGKLMNPRSTVWYZ", "CH", "DH", "HH", "JH", "NG", "SH", "TH", "ZH"}


def pronounce_data(train, dev):
    """Prompts with the pronunciations of both files; what is held out counts as right as either file has it."""
    learned, held_out = words(train), words(dev)
    left = {prompt: listed for prompt, listed in learned.items() if prompt not in held_out}
    if not left:
        raise Wrong(str(train))
    union = {prompt: tuple(dict.fromkeys(listed + learned.get(prompt, ()))) for prompt, listed in held_out.items()}
    return {"train": left, "dev": union}


def words(path):
    found = {}
    for line in re.split(r"\r\n?|\n", unicodedata.normalize("NFC", content_of(path))):
        if line.strip().startswith(";;;"):
            continue
        fields = [bare(field) for field in takewhile(lambda field: not field.startswith("#"), line.split())]
        if fields := [field for field in fields if field]:
            word, phones = re.sub(r"\([0-9]+\)$", "", fields[0]).lower(), [plain(phone) for phone in fields[1:]]
            if not word or not phones or not set(word) <= set("abcdefghijklmnopqrstuvwxyz'-."):
                raise Wrong(str(path))
            if not set(phones) <= {*VOWELS, *CONSONANTS}:
                raise Wrong(str(path))
            listed = found.setdefault(f"{word}:", [])
            listed += [each for each in ["".join(f" {phone}" for phone in phones)] if each not in listed]
    if not found:
        raise Wrong(str(path))
    return {prompt: tuple(listed) for prompt, listed in found.items()}


def plain(phone):
    phone = phone.upper()
    return phone[:-1] if phone[-1] in "012" and phone[:-1] in VOWELS else phone


# ---- models --------------------------------------------------------------------------------------

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def tensors_of(path):
    """A safetensors file: the size of its header, the header, then the bytes of the tensors without gaps."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + size], object_pairs_hook=lambda pairs: once(pairs, path))
        entries = sorted(header.items(), key=lambda item: item[1].get("data_offsets", [-1]))
        beside = header.get("__metadata__", {})
        if len(content) < 8 + size or not all(isinstance(value, str) for value in beside.values()):
            raise ValueError("spoiled")
        found, at = {}, 0
        for name, entry in entries:
            if name != "__metadata__":
                found[name], at = tensor_of(entry, content[8 + size :], at)
        if at != len(content) - 8 - size:
            raise ValueError("left over")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Wrong(str(path)) from None
    return found


def once(pairs, path):
    if len(dict(pairs)) < len(pairs):
        raise Wrong(str(path))
    return dict(pairs)


def tensor_of(entry, data, at):
    """Its values, None where they are no floating point, and where it ends."""
    start, stop = entry["data_offsets"]
    if start != at or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError("gap")
    if entry["dtype"] not in DTYPES:
        if entry["dtype"] not in ("I64", "I32", "I8", "U8", "BOOL"):
            raise ValueError("unknown")
        return None, stop
    values = np.frombuffer(data[start:stop], DTYPES[entry["dtype"]])
    if entry["dtype"] == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    if len(values) != math.prod(entry["shape"]) or len(data) < stop:
        raise ValueError("size")
    return values.astype(np.float64).reshape(entry["shape"]), stop


class Config:
    """config.json; null is as nothing."""

    def __init__(self, path):
        self.path = path
        try:
            self.fields = json.loads(path.read_text())
        except (ValueError, RecursionError):
            raise Wrong(str(path)) from None
        if not isinstance(self.fields, dict):
            raise Wrong(str(path))

    def get(self, key, default, is_right):
        value = self.fields.get(key)
        value = default if value is None else value
        if value is None or not is_right(value):
            raise Wrong(str(self.path), key)
        return value

    def size(self, key, default=None):
        return self.get(key, default, lambda value: type(value) is int and 0 < value < 2**31)

    def number(self, key, default):
        return self.get(key, default, lambda value: type(value) in (int, float) and 0 < value < math.inf)

    def share(self, key, default):
        return self.get(key, default, lambda value: type(value) in (int, float) and 0 <= value < 1)

    def one_of(self, key, *values):
        return self.get(
            key, values[0], lambda value: any(type(value) is type(each) and value == each for each in values)
        )


def check_tensors(folder, wanted, optional=()):
    """Those of the model, all with their shapes, and no others."""
    tensors = tensors_of(folder / "model.safetensors")
    if tensors.keys() - set(optional) != wanted.keys():
        raise Wrong(str(folder))
    for name, shape in wanted.items():
        if tensors[name] is None or tensors[name].shape != shape:
            raise Wrong(str(folder), name)
        with np.errstate(over="ignore"):
            if not np.isfinite(tensors[name].astype(np.float32)).all():
                raise Wrong(str(folder), name)
    return tensors


def llama(folder, tokens):
    """Logits (tokens, vocabulary) of a Llama (Touvron et al. 2023)."""
    config = Config(folder / "config.json")
    width, heads, layers = (
        config.size(f"{key}") for key in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    groups, dim = config.size("num_key_value_heads", heads), config.size("head_dim", max(1, width // heads))
    hidden, vocabulary = config.size("intermediate_size"), config.size("vocab_size")
    eps, theta = config.number("rms_norm_eps", 1e-6), config.number("rope_theta", 1e4)
    config.one_of("hidden_act", "silu", "swish")
    tied = config.one_of("tie_word_embeddings", False, True)
    config.one_of("attention_bias", False)
    config.one_of("mlp_bias", False)
    config.share("attention_dropout", 0.0)
    longest = config.size("max_position_embeddings")
    if layers > 100 or heads % groups or dim % 2 or ("head_dim" not in config.fields and width % heads):
        raise Wrong(str(folder))
    wanted = {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,)}
    wanted["lm_head.weight"] = (vocabulary, width)
    for i in range(layers):
        wanted |= {f"model.layers.{i}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
        rows = {"q": heads * dim, "k": groups * dim, "v": groups * dim}
        wanted |= {f"model.layers.{i}.self_attn.{name}_proj.weight": (n, width) for name, n in rows.items()}
        wanted[f"model.layers.{i}.self_attn.o_proj.weight"] = width, heads * dim
        wanted |= {f"model.layers.{i}.mlp.{name}_proj.weight": (hidden, width) for name in ("gate", "up")}
        wanted[f"model.layers.{i}.mlp.down_proj.weight"] = width, hidden
    w = check_tensors(folder, wanted)
    if tied and not np.array_equal(w["lm_head.weight"], w["model.embed_tokens.weight"]):
        raise Wrong(str(folder), "lm_head.weight")

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"]

    def turned(x):  # (tokens, heads, dim): pairs half a head apart, as Hugging Face lays them out
        angles = np.arange(len(x))[:, None] * theta ** (-np.arange(0, dim, 2) / dim)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    x = w["model.embed_tokens.weight"][tokens[:longest]]
    for i in range(layers):
        at = f"model.layers.{i}"
        q, k, v = (
            (norm(x, f"{at}.input_layernorm") @ w[f"{at}.self_attn.{name}_proj.weight"].T).reshape(len(x), -1, dim)
            for name in "qkv"
        )
        seen = attention(turned(q), turned(k), v, np.tri(len(x), dtype=bool))
        x = x + seen @ w[f"{at}.self_attn.o_proj.weight"].T
        y = norm(x, f"{at}.post_attention_layernorm")
        gate, up = (y @ w[f"{at}.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[f"{at}.mlp.down_proj.weight"].T
    return norm(x, "model.norm") @ w["lm_head.weight"].T


def attention(q, k, v, visible):
    """(tokens, heads, dim) each → (tokens, heads · dim); groups of heads share keys and values."""
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = np.where(visible, np.einsum("ihd,jhd->hij", q, k) / math.sqrt(q.shape[-1]), -np.inf)
    return np.einsum("hij,jhd->ihd", softmax(scores), v).reshape(len(q), -1)


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


ACTIVATIONS = {
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    "gelu_new": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: np.maximum(x, 0),
}


def bert(folder, tokens):
    """Names of classes and their logits of a BERT with a classifier (Devlin et al. 2018)."""
    config = Config(folder / "config.json")
    width, heads, layers = (config.size(key) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    hidden, eps = config.size("intermediate_size"), config.number("layer_norm_eps", 1e-12)
    rows = {"word": config.size("vocab_size"), "position": config.size("max_position_embeddings")}
    rows["token_type"] = max(
        1, config.get("type_vocab_size", 2, lambda value: type(value) is int and abs(value) < 2**31)
    )
    activation = ACTIVATIONS[config.one_of("hidden_act", *ACTIVATIONS)]
    config.one_of("tie_word_embeddings", True, False)
    for key in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
        config.share(key, 0.1)
    config.one_of("problem_type", "single_label_classification")
    if layers > 100 or width % heads:
        raise Wrong(str(folder))
    classes = classes_of(config)
    wanted = {f"bert.embeddings.{name}_embeddings.weight": (n, width) for name, n in rows.items()}
    layer = "bert.encoder.layer.{}."
    dense = {"bert.pooler.dense": (width, width)}
    norms = ["bert.embeddings.LayerNorm"]
    for at in map(layer.format, range(layers)):
        names = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
        dense |= {at + name: (width, width) for name in names}
        dense |= {f"{at}intermediate.dense": (hidden, width), f"{at}output.dense": (width, hidden)}
        norms += [f"{at}attention.output.LayerNorm", f"{at}output.LayerNorm"]
    found = tensors_of(folder / "model.safetensors").get("classifier.weight", np.zeros((0,)))
    count = len(classes) or (len(found) if found is not None and found.ndim else 0)
    dense["classifier"] = count, width
    wanted |= {f"{name}.weight": shape for name, shape in dense.items()}
    wanted |= {f"{name}.bias": shape[:1] for name, shape in dense.items()}
    wanted |= {f"{name}.{kind}": (width,) for name in norms for kind in ("weight", "bias")}
    w = check_tensors(folder, wanted)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]

    tokens = tokens[: rows["position"]]
    table = {name: w[f"bert.embeddings.{name}_embeddings.weight"] for name in rows}
    x = table["word"][tokens] + table["position"][: len(tokens)] + table["token_type"][0]
    x = norm(x, "bert.embeddings.LayerNorm")
    for at in map(layer.format, range(layers)):
        q, k, v = (
            linear(x, f"{at}attention.self.{name}").reshape(len(x), heads, -1) for name in ("query", "key", "value")
        )
        seen = attention(q, k, v, True)
        x = norm(x + linear(seen, f"{at}attention.output.dense"), f"{at}attention.output.LayerNorm")
        inner = activation(linear(x, f"{at}intermediate.dense"))
        x = norm(x + linear(inner, f"{at}output.dense"), f"{at}output.LayerNorm")
    logits = linear(np.tanh(linear(x[0], "bert.pooler.dense")), "classifier")
    return classes or [f"LABEL_{i}" for i in range(count)], logits


def classes_of(config):
    names = config.get("id2label", {}, lambda table: isinstance(table, dict))
    if sorted(names) != sorted(map(str, range(len(names)))):
        raise Wrong(str(config.path), "id2label")
    listed = [names[str(i)] for i in range(len(names))]
    if not all(isinstance(name, str) and name for name in listed) or len(set(listed)) < len(listed):
        raise Wrong(str(config.path), "id2label")
    return listed
