"""What figures are called, what they mean to somebody who does not know the field, and which way is better."""

from typing import NamedTuple


class Entry(NamedTuple):
    name: str  # what a person calls it
    means: str = ""
    is_better: str = ""  # "higher" or "lower"; nothing where neither is


GLOSSARY = {
    # of classes and tags
    "accuracy": Entry("accuracy", "share of right answers: of texts, words or pairs, as the task has it", "higher"),
    "weighted_accuracy": Entry("weighted accuracy", "share of right answers, each class as heavy as given", "higher"),
    "all_labels": Entry("all labels right", "share of texts whose labels were found, all and no other", "higher"),
    "macro_f1": Entry(
        "macro-F1",
        "mean over the classes, rare ones alike, of F1: between the share of a class that is found and the share of "
        "what is taken for it that is right",
        "higher",
    ),
    "micro_f1": Entry(
        "micro-F1", "between the share of all labels that is found and the share of those said that is right", "higher"
    ),
    "f1": Entry(
        "F1", "between the share of entities that is found and the share of those found that is right", "higher"
    ),
    "intent_accuracy": Entry("intents", "share of texts whose intent is right", "higher"),
    "calibration_error": Entry(
        "calibration error",
        "how far, on average, the model's probability of an answer is from how often it is right",
        "lower",
    ),
    # of texts
    "bleu": Entry(
        "BLEU", "from 0 to 100: how many runs of up to four words are those of a given translation", "higher"
    ),
    "chrf": Entry("chrF2", "from 0 to 100: the same by characters, which forgives endings", "higher"),
    "rouge_1": Entry("ROUGE-1", "F1 of the words of answer and given summary", "higher"),
    "rouge_2": Entry("ROUGE-2", "F1 of their pairs of neighbouring words", "higher"),
    "rouge_l": Entry("ROUGE-L", "F1 of their longest common sequence of words", "higher"),
    "exact": Entry("exact", "share of answers that are right to the last letter", "higher"),
    "answer_accuracy": Entry("answer accuracy", "share of answers whose number is right", "higher"),
    "wer": Entry("WER", "word error rate: share of words not pronounced as any listed pronunciation has it", "lower"),
    "per": Entry(
        "PER", "phoneme error rate: sounds to change, as a share of those of the nearest listed pronunciation", "lower"
    ),
    "ended": Entry("ended", "share of answers that came to an end by themselves", "higher"),
    # of how likely texts are
    "nats": Entry("nats a token", "how surprising a token was: − log p to base e; a coin has 0.69", "lower"),
    "perplexity": Entry("perplexity", "between how many tokens it was as hard to choose: e to the nats", "lower"),
    "bits_per_character": Entry("bits a character", "the same surprise to base 2, of a character", "lower"),
    "given": Entry("nats of given answers", "how surprising a token of the given answers is: − log p, to base e"),
    # of numbers
    "unexplained": Entry("variance left", "share of the labels' variance that the model does not explain", "lower"),
    "squared_error": Entry("squared error", "mean of the squared differences to the labels", "lower"),
    "pearson": Entry("pearson", "correlation of answers and labels: 1 where they lie on a line", "higher"),
    "spearman": Entry("spearman", "correlation of their ranks: 1 where their order is the same", "higher"),
    # of preferences
    "of_equal_length": Entry("of equal length", "the accuracy where both answers are about as long", "higher"),
    "prefers_the_longer": Entry("prefers the longer", "how often the model likes the longer answer better"),
    "margin": Entry("margin", "by how much it likes the chosen answer better, on average", "higher"),
    "chosen_gain": Entry("nats gained by chosen answers", "by how much likelier they have become, on average"),
    # of answers that were drawn
    "reward": Entry("reward", "mean of what the answers were given", "higher"),
    "pass_1": Entry("pass@1", "share of drawn answers that are right", "higher"),
    "pass_8": Entry("pass@8", "share of prompts to which at least one of eight drawn answers is right", "higher"),
    "entropy": Entry("entropy", "how undecided the model is, in nats a draw: 0 where it always says the same"),
    "kl": Entry(
        "KL to the start", "how far it moved: nats an answer by which its own are likelier to it than to the start"
    ),
    "found": Entry("found", "share of numbers that were found in the guesses there are", "higher"),
    "matrix_share": Entry("share of the matrix rate", "of what this machine reaches in one large product of matrices"),
    # of simple rules
    "majority": Entry("always the commonest class", "what needs no reading"),
    "naive_bayes": Entry("naive Bayes", "what counting words and pairs of words gives, in a second"),
    "commonest_labels": Entry("commonest labels", "what always saying those that do best in training gives"),
    "look_up": Entry("commonest tags", "what each word was tagged most often in training"),
    "n_grams": Entry("5-grams", "what counting sequences of five tokens gives"),
    "longer": Entry("the longer one wins", "what looking at the lengths gives"),
    "of_the_mean": Entry("squared error of the mean", "what always saying the mean of training gives"),
    "copy": Entry("copy", "what the prompt itself would get as an answer"),
    "lead_sentence": Entry("lead sentence", "what its first sentence would get"),
    "commonest": Entry("commonest", "what the commonest answer of training would get"),
    "random_player": Entry("random player", "what the player who is imitated finds"),
}  # by the names that logs have; what is not here is called so


def named(name: str) -> str:
    """What a person calls a metric, or another value of a log."""
    return GLOSSARY[name].name if name in GLOSSARY else name.replace("_", " ")


def explained(name: str, is_better: str | None = None) -> str:
    """What it means, and which way is better, where that is known; `is_better` is what its task says."""
    _, means, known = GLOSSARY.get(name, Entry(name))
    better = known if is_better is None else is_better
    return ", ".join([*([means] if means else []), *([f"{better} is better"] if better else [])])
