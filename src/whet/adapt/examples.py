"""From a document to the tokens to train on, and which of them count in the loss.

Source of the conditional loss: TTARAG, arXiv 2601.11443, which trains on the end of a passage given
the question and the beginning of the passage.
"""

from collections.abc import Sequence

import torch

from whet.adapt.batches import TrainText
from whet.adapt.chat.responses import response_text
from whet.adapt.config import Loss
from whet.adapt.model import LanguageModel
from whet.data.documents import Document
from whet.data.messages import ANSWERING, messages_of

SEPARATOR = "\n\n"  # between a question and a passage


def train_texts(
    documents: Sequence[Document], model: LanguageModel, loss: Loss, prompt: str
) -> list[TrainText]:
    """The text to train on of each document: see `TrainingConfig.loss`.

    Args:
        documents: The documents, repeats included, which are encoded once.
        model: The model, for its tokenizer and chat template.
        loss: What counts in the loss.
        prompt: The question that a `conditional` loss is conditioned on.

    Raises:
        ValueError: If a document has nothing to train on.
    """
    encoded = dict[tuple[str, int], TrainText]()
    texts = list[TrainText]()
    for document in documents:
        key = document.text, id(document.meta)
        if key not in encoded:
            encoded[key] = _train_text(document, model, loss, prompt)
        texts.append(encoded[key])
    return texts


def _train_text(document: Document, model: LanguageModel, loss: Loss, prompt: str) -> TrainText:
    messages = None if loss == "all" else messages_of(document.meta, document.text)
    if messages and any(message["role"] == ANSWERING for message in messages):
        try:
            return response_text(model, messages)
        except ValueError as error:
            raise ValueError(f"document {document.id!r}: {error}") from error
    if loss == "response":
        raise ValueError(
            f"document {document.id!r} has no response, but loss is 'response': expected records "
            "with `messages`, or `prompt` and `response`; loss 'auto' trains on all tokens of others"
        )
    if loss == "conditional":
        return _conditional(document.text, model, prompt)
    return TrainText(model.training_tokens(document.text))


def _conditional(text: str, model: LanguageModel, prompt: str) -> TrainText:
    """The second half of `text`, from the white space before its middle, given what is before."""
    middle = (len(text) + 1) // 2
    cut = max(text.rfind(space, 0, middle) for space in " \n")
    cut = max(cut, 0)
    front = (prompt.strip() + SEPARATOR if prompt.strip() else "") + text[:cut]
    seen = model.encode(front, device="cpu", plain=True)
    scored = model.encode_after(front, text[cut:], device="cpu", plain=True)
    if not len(scored):
        raise ValueError(f"text {text[:20]!r} has no tokens: nothing to train on")
    mask = torch.arange(len(seen) + len(scored)) >= len(seen)
    return TrainText(torch.cat([seen, scored]), mask)
