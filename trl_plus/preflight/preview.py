"""Rows as the sequences of tokens that are trained on."""

import numpy as np

from trl_plus.preflight.findings import Preview, Token
from trl_plus.preflight.target import Target
from trl_plus.preflight.tokens import TokenRows


def preview_rows(tokens: TokenRows, target: Target, split: str, count: int) -> list[Preview]:
    """The first `count` rows of a batch, in the order of their source."""
    places = np.argsort(tokens.index, kind="stable")[:count].tolist()
    return [_preview(tokens, place, target, split) for place in places]


def _preview(tokens: TokenRows, place: int, target: Target, split: str) -> Preview:
    dropped = ""
    if tokens.dropped[place]:
        full = tokens.max_length is not None and len(tokens.prompt[place]) >= tokens.max_length
        dropped = f"the prompt fills max_length {tokens.max_length}" if full else f"overlong: {target.overlong}"
    sides = {side: _tokens(tokens, side, place, target) for side in tokens.sides}
    label = None if tokens.label is None else bool(tokens.label[place])
    return Preview(tokens.rows[place].source_row, split, sides, label, dropped)


def _tokens(tokens: TokenRows, side: str, place: int, target: Target) -> list[Token]:
    prompt, own = tokens.prompt[place], tokens.sides[side][place]
    ids = np.concatenate([prompt, own])
    loss = np.concatenate([np.zeros(len(prompt), bool), tokens.in_loss(side, place)])
    masked = side in tokens.loss
    over = int(tokens.over(side)[place])
    texts, control_tokens = token_texts(target.tokenizer, ids.tolist()), target.control_tokens
    return [
        Token(
            text=text,
            loss=bool(loss[position]),
            special=token in control_tokens,
            cut=position >= len(ids) - over if target.keeps_start else position < over,
            masked=masked and position >= len(prompt) and not loss[position],
        )
        for position, (token, text) in enumerate(zip(ids.tolist(), texts, strict=True))
    ]


def token_texts(tokenizer: object, ids: list[int]) -> list[str]:
    """The text of each token, which together make the text of all: a character of several tokens stands at its last."""
    texts: list[str] = []
    start = 0  # of the tokens whose text is not complete yet
    alone: dict[int, str] = {}  # texts by token: a row of 200,000 tokens has far fewer different ones
    for position, token in enumerate(ids):
        if start < position or token not in alone:
            text = tokenizer.decode(ids[start : position + 1], clean_up_tokenization_spaces=False)  # type: ignore[attr-defined]
            if start == position:
                alone[token] = text
        else:
            text = alone[token]
        if text.endswith("\ufffd") and position - start < 8:
            texts.append("")
            continue
        texts.append(text)
        start = position + 1
    if start < len(ids) and texts:
        texts[-1] = "\ufffd"
    return texts
