"""A classifier that begins as naive Bayes, so that training has only to learn what counting does not know.

Naive Bayes adds up, over the tokens v of a text, how much each speaks for each class k: E[v, k] = log p(v | k), less
its mean over the classes. A matrix of rank K − 1 at most: its right factor becomes the head, its left factor a few
dimensions of the embeddings, and what is between them is made to hand on the mean of a text unchanged.

- An embedding has a mean of 0 and one length, whatever the token, so that normalising it changes nothing: the signal,
  a constant, and noise of its own that fills up the length and tells tokens apart.
- The blocks begin by adding nothing: their products onto the stream are 0 (Zhang et al. 2019, arXiv:1901.09321).
- GELU(x) − GELU(−x) = x: two units of the head's transform hand a number on. The other units are told the constant,
  which is most of the variance that its norm divides by.

Interpolation between counts and what is learned discriminatively is what makes bags of words strong (Wang and Manning
2012). The tokens are the model's own, and unlike naive_bayes.py it knows no pairs of them.

Letters: V vocabulary, K classes, C width, R dimensions of the signal, N tokens, B texts.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.batching import DocumentTable
from minillm.heads import SequenceClassifier

SIGNAL, CONSTANT = 0.5, 0.125  # most of a squared embedding that may speak for a class; what all tokens share
SMOOTHING = 1.0  # what is added to every count (Laplace)
SPREAD = 0.02  # of an embedding's elements, as `layers.initialise` has it
NARROWEST = 16  # a width with room for all that
JUDGED = 5000  # training texts by which is found whether to count, and how sure to be
WORTH = 0.03  # of accuracy: what tokens must tell, and what pairs of them must add where order matters
SCALES = torch.logspace(-1, 2, 46, dtype=torch.float64).tolist()


@torch.no_grad()
def begin_as_naive_bayes(model: SequenceClassifier, table: DocumentTable) -> None:
    """Sets embeddings, head, and what the blocks add, from training documents with a class each."""
    width = model.config.width
    counts = count(table, model.config.vocab_size, len(model.classes))
    evidence = centred(log_likelihood(counts))
    evidence[counts.sum(1) == 0] = 0
    head = directions(evidence, counts.sum(1), rank=min(len(model.classes) - 1, width // 4))
    signal = evidence @ head  # (V, R)
    gain = math.sqrt(SIGNAL * width) / signal.norm(dim=1).max().clamp_min(1e-6)
    _, constant, *others = orthonormal(width)  # the first is the mean, which embeddings don't have
    constant = math.sqrt(CONSTANT * width) * constant
    axes, rest = torch.stack(others[: head.shape[1]]), torch.stack(others[head.shape[1] :])
    model.encoder.tokens.weight.copy_(SPREAD * filled_up(constant + gain * signal @ axes, rest))
    silence(model)
    scale, prior = calibrated(table, counts)
    hand_on(model, axes, constant, scale / gain * head)
    model.classifier.bias.copy_(prior)


def filled_up(known: Tensor, rest: Tensor) -> Tensor:
    """Embeddings (V, C) whose squares have a mean of 1: what is known of them, and noise along the rows of `rest`."""
    noise = F.normalize(torch.randn(len(known), len(rest), dtype=known.dtype), dim=1) @ rest
    return known + (known.shape[1] - known.square().sum(1, keepdim=True)).sqrt() * noise


def silence(model: SequenceClassifier) -> None:
    """Blocks that add nothing."""
    for block in model.encoder.blocks:
        block.attn.out.weight.zero_()
        block.mlp.down.weight.zero_()


def hand_on(model: SequenceClassifier, axes: Tensor, constant: Tensor, head: Tensor) -> None:
    """What is read along the axes (R, C) becomes logits by way of the head (K, R)."""
    dense, paired = model.transform.dense.weight, 2 * len(axes)
    dense[:paired] = torch.stack([axes, -axes], dim=1).flatten(0, 1).to(dense)
    dense[paired::2] += (constant / constant.norm() / 2).to(dense)
    dense[paired + 1 :: 2] -= (constant / constant.norm() / 2).to(dense)
    spread = F.gelu(dense @ constant.to(dense)).std(correction=0).double().cpu()  # which the norm divides by
    model.classifier.weight.zero_()
    model.classifier.weight[:, :paired] = torch.stack([spread * head, -spread * head], dim=2).flatten(1).to(dense)


def counting_tells(table: DocumentTable, num_classes: int) -> bool:
    """Whether naive Bayes is a start worth having: it knows more than which class is commonest, and the pairs of
    neighbouring tokens would not tell it much more, each text judged as if it had not been counted. Where order
    matters, a start that knows all tokens but no order is in the way: it gets the training texts right already."""
    text = np.repeat(np.arange(len(table)), table.tokens_of.sizes)
    inside = text[1:] == text[:-1]
    size = int(table.tokens.max()) + 1
    pairs = size + size * table.tokens[:-1][inside] + table.tokens[1:][inside]
    alone = counted_accuracy(table.tokens, text, table.labels, num_classes)
    both = np.concatenate([table.tokens, pairs]), np.concatenate([text, text[1:][inside]])
    commonest = float(np.bincount(table.labels).max()) / len(table)
    return alone > commonest + WORTH and counted_accuracy(*both, table.labels, num_classes) <= alone + WORTH


# ---- counting ----------------------------------------------------------------------------------------


def count(table: DocumentTable, vocab_size: int, num_classes: int) -> Tensor:
    """How often each class has each token, (V, K) float64."""
    return count_features(table.tokens, np.repeat(table.labels, table.tokens_of.sizes), vocab_size, num_classes)


def count_features(features: np.ndarray, classes: np.ndarray, how_many: int, num_classes: int) -> Tensor:
    times = np.bincount(features * num_classes + classes, minlength=how_many * num_classes)
    return torch.from_numpy(times).view(how_many, num_classes).double()


def log_likelihood(counts: Tensor) -> Tensor:
    """log p(token | class), (V, K)."""
    return ((counts + SMOOTHING) / (counts.sum(0) + SMOOTHING * (counts.sum(1) > 0).sum())).log()


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def directions(evidence: Tensor, weights: Tensor, rank: int) -> Tensor:
    """The orthonormal directions between classes, (K, R), in which the weighted rows of the evidence differ most."""
    return torch.linalg.eigh(evidence.T @ (weights[:, None] * evidence)).eigenvectors[:, -rank:]


def orthonormal(width: int) -> Tensor:
    """Rows of length 1 at right angles, (C, C) float64, drawn at random but for the first, which is constant."""
    drawn = torch.randn(width, width, dtype=torch.float64)
    drawn[:, 0] = 1
    return torch.linalg.qr(drawn).Q.T


def calibrated(table: DocumentTable, counts: Tensor) -> tuple[float, Tensor]:
    """How sure to be: by what the mean evidence of a text is multiplied, and what is added for how frequent the classes
    are, (K,), so that the training texts get their own classes, each judged as if it had not been counted."""
    texts = np.arange(0, len(table), -(-len(table) // JUDGED))
    tokens, sizes = table.tokens[table.tokens_of.select(texts)], table.tokens_of.sizes[texts]
    text, labels = np.repeat(np.arange(len(texts)), sizes), torch.from_numpy(table.labels[texts])
    mean = uncounted_sums(tokens, text, labels, counts) / torch.from_numpy(sizes)[:, None]
    prior = log_prior(table.labels, counts.shape[1]) / table.tokens_of.sizes.mean()  # the weight of one token
    scale = min(SCALES, key=lambda scale: float(F.cross_entropy(scale * (mean + prior), labels)))
    return scale, scale * prior


def counted_accuracy(features: np.ndarray, text: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
    """How often naive Bayes is right about training texts."""
    _, features = np.unique(features, return_inverse=True)
    counts = count_features(features, labels[text], features.max() + 1, num_classes)
    truth = torch.from_numpy(labels)
    sums = uncounted_sums(features, text, truth, counts) + log_prior(labels, num_classes)
    return float((sums.argmax(1) == truth).double().mean())


def uncounted_sums(features: np.ndarray, text: np.ndarray, labels: Tensor, counts: Tensor) -> Tensor:
    """Σ log p(feature | class) over each text, (B, K), less what its own class owes to the text: one in the count
    of each feature. (The class' sum of counts stays: smaller than the other classes', it would tell which it is.)"""
    order = np.argsort(text, kind="stable")
    features, text = torch.from_numpy(features[order]), torch.from_numpy(text[order])
    first = torch.searchsorted(text, torch.arange(len(labels)))
    sums = F.embedding_bag(features, log_likelihood(counts), first, mode="sum")
    times = counts[features, labels[text]] + SMOOTHING
    own = sums.new_zeros(len(labels)).index_add(0, text, times.log() - (times - 1).log())
    return sums - own[:, None] * F.one_hot(labels, counts.shape[1])


def log_prior(labels: np.ndarray, num_classes: int) -> Tensor:
    return centred(torch.from_numpy(np.bincount(labels, minlength=num_classes) + SMOOTHING).log())
