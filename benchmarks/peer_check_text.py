"""What a tokenized answer and its prompt say. Plain Python, for the environments of all peers."""

import re

QUESTION = re.compile(r"<\|vision_end\|>(.*)<\|im_end\|>\n<\|im_start\|>assistant\n", re.S)
ANSWER_END = re.compile(r"<\|im_end\|>\n?\Z")


def side(tokenizer, ids: list[int], labels: list[int], video_token: int, grid) -> dict:
    """One of the two sequences of a pair.

    Args:
        tokenizer: the peer's, to read back what it wrote.
        ids: the sequence, prompt and answer.
        labels: the same length; what is not trained is negative.
        video_token: the id that the model, by its config, fills with the video.
        grid: patches of the frames that go with the sequence, a tensor [1, 3] or [3]: time, height, width; or None.

    Returns:
        ``question`` (None when the prompt does not hold a video and then a question) and ``answer`` as text, ``tokens``
        of the video in the sequence, and ``grid`` as a flat list.
    """
    trained = [label for label in labels if label >= 0]
    asked = QUESTION.search(tokenizer.decode(ids[: len(ids) - len(trained)], skip_special_tokens=False))
    return {
        "question": asked and asked.group(1),
        "answer": ANSWER_END.sub("", tokenizer.decode(trained, skip_special_tokens=False)),
        "tokens": sum(token == video_token for token in ids),
        "grid": None if grid is None else grid.flatten().tolist(),
    }


def row_by_row(kept, sides, frames: dict[str, list[int]]) -> list[dict]:
    """What every kept row becomes, each by itself; a row that cannot be read keeps its place and its error.

    Args:
        kept: rows of the peer's loader, with ``videos``.
        sides: row → ``{"chosen": …, "rejected": …}``, each of :func:`side`; it reads the row's video.
        frames: by path, which frames of a clip were read; filled while ``sides`` works.

    Returns:
        ``{video, error, frames, chosen, rejected}`` for each row.
    """
    rows = []
    for row in kept:
        seen = {"video": row["videos"][0] if row.get("videos") else None, "error": None}
        try:
            seen.update(sides(row))
            seen["frames"] = frames[seen["video"]]
        except Exception as error:
            seen["error"] = f"{type(error).__name__}: {error}"
        rows.append(seen)
    return rows
