"""A classifier that begins as naive Bayes, so that training has only to learn what counting does not know.

Naive Bayes adds up, over the tokens v of a text, how much each speaks for each class k: E[v, k] = log p(v | k), less its
mean over the classes. A matrix of rank K − 1 at most: its right factor R becomes the head, its left factor E R a few
dimensions of the embeddings, and what is between them is made to hand on the mean of a text unchanged.

- An embedding has a mean of 0 and one length, whatever the token, so that normalising it changes nothing: the signal E R,
  a constant, and noise of its own that fills up the length and tells tokens apart.
- The blocks begin by adding nothing: what they multiply onto the stream with is 0 (Zhang et al. 2019, arXiv:1901.09321).
- GELU(x) − GELU(−x) = x: two units of the head's transform hand a number on. The other units are told the constant, which
  is most of the variance that its norm divides by.

Interpolation between counts and what is learned discriminatively is what makes bags of words strong (Wang and Manning
2012). The tokens are the model's own, and unlike naive_bayes.py it knows no pairs of them.

Letters: V vocabulary, K classes, C width, R dimensions of the signal, N tokens and B texts of the training set.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.batching import DocumentTable
from minillm.heads import SequenceClassifier

SIGNAL, CONSTANT = 0.5, 0.125  # most of a squared embedding that may speak for a class; what is the same for all tokens
SMOOTHING = 1.0  # what is added to every count (Laplace)
SPREAD = 0.02  # of an embedding's elements, as `layers.initialise` has it
SCALES = torch.logspace(-1, 2, 61, dtype=torch.float64)


def fits(model: SequenceClassifier) -> bool:
    """Whether this is possible: the mean of a text stands for it, as in ModernBERT, and there is room in its width."""
    return getattr(model.config, "pooling", None) == "mean" and model.config.width >= 16


@torch.no_grad()
def begin_as_naive_bayes(model: SequenceClassifier, table: DocumentTable) -> None:
    """Sets embeddings, head, and what blocks add, from training documents with a class each."""
    width, device = model.config.width, model.classifier.weight.device
    tokens, text, labels = flat_documents(table)
    counts = count(tokens, labels[text], model.config.vocab_size, len(model.classes))
    evidence = centred(log_likelihood(counts, counts.sum(0), counts))
    evidence[counts.sum(1) == 0] = 0
    right = directions(evidence, counts.sum(1), rank=min(len(model.classes) - 1, width // 4))
    signal = evidence @ right  # (V, R)
    gain = math.sqrt(SIGNAL * width) / signal.norm(dim=1).max().clamp_min(1e-6)
    basis = orthonormal(width)
    constant, axes, rest = basis[1], basis[2 : 2 + right.shape[1]], basis[2 + right.shape[1] :]

    known = gain * signal @ axes + math.sqrt(CONSTANT * width) * constant
    noise = F.normalize(torch.randn(len(signal), len(rest), dtype=torch.float64), dim=1) @ rest
    embeddings = known + (width - known.square().sum(1, keepdim=True)).sqrt() * noise
    model.encoder.tokens.weight.copy_(SPREAD * embeddings)
    for block in model.encoder.blocks:
        block.attn.out.weight.zero_()
        block.mlp.down.weight.zero_()

    paired = 2 * len(axes)
    dense = model.transform.dense.weight
    dense[:paired] = torch.stack([axes, -axes], dim=1).flatten(0, 1).to(dense)
    signs = torch.ones(width - paired, 1, dtype=torch.float64)
    signs[1::2] = -1
    dense[paired:] += (signs * constant / 2).to(dense)
    units = F.gelu(dense.double().cpu() @ (math.sqrt(CONSTANT * width) * constant))
    scale, prior = calibrated(tokens, text, labels, counts)
    weight = scale * units.std(correction=0) / gain * right
    model.classifier.weight.zero_()
    model.classifier.weight[:, :paired] = torch.stack([weight, -weight], dim=2).flatten(1).to(device, torch.float32)
    model.classifier.bias.copy_(prior)


def flat_documents(table: DocumentTable) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (N,), of which text each is (N,), and the classes of the texts (B,)."""
    text = torch.arange(len(table.labels)).repeat_interleave(torch.from_numpy(table.tokens_of.sizes))
    return torch.from_numpy(table.tokens), text, torch.from_numpy(table.labels)


def count(tokens: Tensor, classes: Tensor, vocab_size: int, num_classes: int) -> Tensor:
    """How often each class has each token, (V, K) float64."""
    both = torch.bincount(tokens * num_classes + classes, minlength=vocab_size * num_classes)
    return both.view(vocab_size, num_classes).double()


def log_likelihood(times: Tensor, totals: Tensor, counts: Tensor) -> Tensor:
    """log p(token | class), (…, K), of tokens that the classes have so many `times` among so many tokens in all."""
    return ((times + SMOOTHING) / (totals + SMOOTHING * (counts.sum(1) > 0).sum())).log()


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


def calibrated(tokens: Tensor, text: Tensor, labels: Tensor, counts: Tensor) -> tuple[float, Tensor]:
    """How sure to be: by what the mean evidence of a text is multiplied, and what is added for the classes' own
    frequencies, (K,), so that the training texts' own classes are likeliest; each judged without its own words."""
    own = F.one_hot(labels[text], counts.shape[1])
    sizes = torch.bincount(text, minlength=len(labels))
    totals = counts.sum(0) - own * sizes[text, None]
    evidence = centred(log_likelihood(counts[tokens] - own, totals, counts))
    mean = evidence.new_zeros(len(labels), counts.shape[1]).index_add(0, text, evidence) / sizes[:, None]
    prior = centred((torch.bincount(labels, minlength=counts.shape[1]) + SMOOTHING).double().log())
    share = 1 / sizes.double().mean()  # naive Bayes' own: the prior counts as much as one token
    losses = [F.cross_entropy(scale * (mean + share * prior), labels) for scale in SCALES]
    scale = float(SCALES[int(torch.stack(losses).argmin())])
    return scale, scale * share * prior
