"""Every kernel in every configuration that is shipped, with all that is known when it is compiled.

Letters: D head dim, V vocabulary.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Card:
    """Limits of an architecture, from the vendors' programming guides."""

    target: tuple  # of triton.backends.compiler.GPUTarget
    product: str  # the instruction of its tensor cores
    shared: int  # bytes that a program may use
    shared_all: int  # bytes of a processor
    warps: int  # that fit on a processor


CARDS = {
    # What sm_86 and sm_89 leave a program: they use the launch table of sm_80.
    "sm_80": Card(("cuda", 80, 32), "HMMA", 99 << 10, 164 << 10, 64),
    "sm_90": Card(("cuda", 90, 32), "HGMMA", 227 << 10, 228 << 10, 64),
    "sm_100": Card(("cuda", 100, 32), "UTCHMMA", 227 << 10, 228 << 10, 64),
    "sm_120": Card(("cuda", 120, 32), "HMMA", 99 << 10, 100 << 10, 48),
    "gfx942": Card(("hip", "gfx942", 64), "MFMA", 64 << 10, 64 << 10, 32),
}


@dataclass(frozen=True)
class Configuration:
    """A kernel with all that is known when it is compiled."""

    card: str
    kernel: str  # module of kernels/gpu, function
    name: str  # of the variant
    types: dict[str, str | tuple]  # arguments known at launch: their Triton types, in a tuple None for None
    constants: dict[str, object]  # what is in neither of the two is None
    warps: int
    stages: int = 1
    product: str = ""  # instruction of the tensor cores that it should use

    def __str__(self) -> str:
        module, function = self.kernel.removesuffix("_kernel").split(".")
        return f"{self.card:7} {module}.{function:11} {self.name}"


def configurations() -> list[Configuration]:
    kinds = _attention, _descriptors, _decode, _cross_entropy
    return [c for card in CARDS for kind in kinds for c in kind(card)]


# The options multiply, so a few stand for all: the two that training uses most, dropout, which takes most arithmetic,
# and everything at once, to know the worst. float16 compiles like bfloat16, a smaller head dim to less.
CAUSAL = {"causal": True}
GROUPED = {"bounds": "packed", "causal": True, "group": 4}
DROPOUT = {"bounds": "lengths", "dropout": True}
EVERYTHING = GROUPED | {"window": True, "softcap": True, "dropout": True}
VARIANTS = {"causal": CAUSAL, "packed causal grouped": GROUPED, "lengths dropout": DROPOUT}
TRAINING = ("forward", "backward_q", "backward_kv")
HAVE_ENGINES = ("sm_90", "sm_100", "sm_120")  # which copy tiles
# Of a step of generation: queries of a sequence, options, and whether the keys are in shares to be merged.
RAGGED = {"bounds": "lengths", "causal": True, "group": 4}
UNSPLIT = "one query unsplit"
STEPS = {
    "one query": (1, RAGGED, True),
    UNSPLIT: (1, CAUSAL, False),
    "some queries window": (8, RAGGED | {"window": True}, True),
}


def _attention(card: str):
    from kernels.gpu import launch_table as table

    for D in (64, 128, 256):
        variants = VARIANTS if D == 256 else VARIANTS | {"everything": EVERYTHING}
        launches = table.choose(card, torch.bfloat16, D)
        for kernel in TRAINING:
            for name, options in variants.items():
                words = f"D{D} bf16 {name}", "bf16"
                yield _attention_configuration(card, kernel, *words, D, getattr(launches, kernel), options)
    for D in (64, 128, 256):
        launches = table.choose(card, torch.float32, D)
        for kernel in TRAINING:
            words = f"D{D} fp32 causal", "fp32"
            yield _attention_configuration(card, kernel, *words, D, getattr(launches, kernel), CAUSAL)


def _descriptors(card: str):
    """The forward with the launches of the plain one, where the sweep of bench/gpu.py may find it to be faster."""
    from kernels.gpu import launch_table as table

    for D in (64, 128) if card in HAVE_ENGINES else ():
        launch = table.choose(card, torch.bfloat16, D).forward
        for name, options in {"causal": CAUSAL, "packed causal grouped": GROUPED}.items():
            words = f"D{D} bf16 {name}", "bf16", D, launch, options
            yield _attention_configuration(card, "forward", *words, module="descriptors")


def _attention_configuration(card, kernel, name, dtype, D, launch, options, module: str = "attention") -> Configuration:
    from kernels.gpu import attention

    types = _attention_types(getattr(attention, f"{kernel}_kernel"), dtype, options)
    kernel = f"{module}.{kernel}_kernel"
    product = CARDS[card].product if dtype != "fp32" else ""  # tensor cores would round float32 to TF32
    constants = _attention_constants(D, launch, options)
    return Configuration(card, kernel, name, types, constants, launch.warps, launch.stages, product)


def _decode(card: str):
    """Steps of generation. A tile of few rows is too low for the products that Hopper and Blackwell are famous for."""
    from kernels.gpu import launch_table as table
    from kernels.gpu.decode import MERGE_WARPS

    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        for D in (64, 128, 256):
            launch = table.choose(card, dtype, D).decode
            for variant, step in STEPS.items():
                if name == "bf16" or variant != UNSPLIT:
                    yield _step(card, f"D{D} {name} {variant}", name, D, launch, *step)
    for D in (64, 128, 256):
        types = {"parts_ptr": "*fp32", "sums_ptr": "*fp32", "o_ptr": "*bf16", "rows": "i32", "shares": "i32"}
        constants = {"D": D, "BLOCK_D": D}
        yield Configuration(card, "decode.merge_kernel", f"D{D} bf16", types, constants, MERGE_WARPS)


def _step(card, name, dtype, D, launch, queries, options, merged) -> Configuration:
    from kernels.gpu import decode

    launch = decode.narrowed(launch, queries * options.get("group", 1))
    types = _attention_types(decode.split_kernel, dtype, options)
    if merged:
        types |= {"o_ptr": "*fp32", "sums_ptr": "*fp32"}
    product = "" if dtype == "fp32" else "MFMA" if card.startswith("gfx") else "HMMA"
    constants = _attention_constants(D, launch, options)
    return Configuration(card, "decode.split_kernel", name, types, constants, launch.warps, launch.stages, product)


def _attention_constants(D: int, launch, options: dict) -> dict:
    from kernels.gpu import attention

    block = attention.Block(launch.block_m, launch.block_n, D)
    o = {"bounds": "", "causal": False, "group": 1} | options
    return {"D": D, "GROUP": o["group"], "BOUNDS": o["bounds"], "CAUSAL": o["causal"], "BLOCK": block}


def _attention_types(kernel, dtype: str, options: dict) -> dict:
    from kernels.gpu import attention

    o = {"bounds": "", "window": False, "softcap": False, "dropout": False} | options
    types = dict.fromkeys(("q_strides", "k_strides"), attention.Strides("i32", "i32", "i32"))
    types |= dict.fromkeys(("T", "S", "H", "N"), "i32") | {"seed": "i64"}
    types["scores"] = attention.Scores("fp32", "fp32" if o["softcap"] else None, "i32" if o["window"] else None)
    if o["dropout"]:
        types["dropout"] = attention.Dropout("i32", "fp32")
    for argument in kernel.arg_names:
        if argument in ("lse_ptr", "delta_ptr"):
            types[argument] = "*fp32"
        elif argument.endswith("_ptr") and argument != "sums_ptr":
            types[argument] = f"*{dtype}"
        elif argument.endswith("_bounds") and o["bounds"]:
            types[argument] = "*i32"
    return types


def _cross_entropy(card: str):
    from kernels.gpu import cross_entropy as table

    sizes = {"N": "i32", "V": "i32", "logits_stride": "i32", "grad_stride": "i32"}
    sizes["loss"] = table.Loss("i32", "fp32", "fp32", "fp32")
    for dtype in ("bf16", "fp32"):
        for V in (70, 16384, 131072):
            in_registers, block, warps = table.launch_shape(V)
            for grad in (False, True):
                pointers = {"logits_ptr": f"*{dtype}", "targets_ptr": "*i64", "loss_ptr": "*fp32"}
                pointers |= {"stats_ptr": "*fp32", "norm_ptr": "*fp32"}
                if grad:
                    pointers["grad_ptr"] = f"*{dtype}"
                constants = {"SMOOTH": True, "IN_REGISTERS": in_registers, "BLOCK": block}
                name = f"V{V} {dtype} {'loss and gradient' if grad else 'loss'}"
                types = pointers | sizes
                yield Configuration(card, "cross_entropy.forward_kernel", name, types, constants, warps)
        for V in (70, 131072):
            block, warps = table.tile_shape(V)
            pointers = {"logits_ptr": f"*{dtype}", "targets_ptr": "*i64", "norm_ptr": "*fp32", "g_ptr": "*fp32"}
            types = pointers | {"grad_ptr": f"*{dtype}", "g_stride": "i32"} | sizes
            kernel = "cross_entropy.backward_kernel"
            yield Configuration(card, kernel, f"V{V} {dtype}", types, {"BLOCK": block}, warps)
