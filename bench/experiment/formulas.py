"""What each method optimises, in formulas, each with the test that holds it against autograd or enumeration."""

TESTS = "tests/sft_vs_rl/test_gradients.py"
NOTATION = """x: a prompt · y: an answer, tokens y₁ … yₙ, its end included · π(y | x) = Π p(yₜ | x, y₁ … yₜ₋₁) ·
z: the logits before a token, p = softmax(z) · e_y: 1 at the token y, else 0 · r: the reward of an answer · b: a
baseline, which does not depend on the answer · β: a weight · π₀: the start"""

# Method, what is optimised, its gradient, the test.
FORMULAS = (
    (
        "Supervised (SFT)",
        "minimise E over given answers y* of −log π(y* | x)",
        "∂/∂z of −log p(y*) = p − e_y*: softmax minus one-hot. At each token −∇ log p(y*), all with the same weight.",
        "test_cross_entropy_is_softmax_minus_one_hot",
    ),
    (
        "REINFORCE",
        "maximise E over own answers y ~ π of r(x, y)",
        "(r − b) · ∇ log π(y | x), so at each token (r − b) · (e_y − p) on the logits: the same formula with the "
        "weight r − b, and with the token that was drawn in place of the given one. Its mean is the exact gradient.",
        "test_reinforce_is_the_gradient_of_the_expected_reward",
    ),
    (
        "both, mixed",
        "maximise (1 − s) · E r + s · E log π(y* | x)",
        "the weighted sum of both gradients; s is --sft-share",
        "test_a_mixture_is_the_sum_of_both",
    ),
    (
        "Best of the samples, expert iteration",
        "maximise E over own answers that were right of log π(y | x)",
        "1 · ∇ log π for right answers, 0 for wrong ones: of a reward of 0 or 1 drawn anew that is REINFORCE without a "
        "baseline, p(right) times the gradient of log p(right).",
        "test_imitating_right_answers_climbs_the_log_of_being_right",
    ),
    (
        "KL-regularised reward (RLHF), soft Q-learning",
        "maximise E r − β · KL(π ‖ π₀)",
        "REINFORCE with r − β · log(π / π₀) as reward. The best policy is π* ∝ π₀ · exp(r / β); soft Q-learning asks "
        "the logits for the same π*, answer by answer.",
        "test_the_best_policy_under_a_kl_is_tilted_by_the_reward",
    ),
    (
        "DPO",
        "maximise E over pairs of log σ(β · (log π/π₀ of the chosen − log π/π₀ of the rejected))",
        "β · (1 − σ) · (∇ log π(chosen) − ∇ log π(rejected)): weights on log π once more",
        "test_dpo_is_a_weight_on_log_p",
    ),
)
TWO_CLASSES = """Of two classes "wrong" says which one is right: a verdict is then a label, worth one bit like it. But
REINFORCE does not know that. It moves the logits by (r − b) · (e_y − p) and never by what the other class would have
been paid; of K classes a wrong guess only excludes one of K."""
