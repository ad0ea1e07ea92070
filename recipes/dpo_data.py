"""Preference rows in the shapes people have them: read, checked once, and shown to the trainer in one shape.

The trainer's shape is `prompt`, `chosen`, `rejected` (messages with content parts, one video part in the prompt) and a
clip in `video` or `frames`. Nothing is copied for it: a row gets that shape when it is read, and its videos stay where
they are, undecoded.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dataset_builder.errors import KitError, RowError

CLIPS = ("frames", "videos", "video")  # the first that a row has is taken
TEXTS = ("prompt", "chosen", "rejected")
NAMES = ("question_id", "video_id")
FILES = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
PLACEHOLDER = "<video>"  # how plain texts mark the video's place
NUMBER = "row_number"  # column added for messages: 1-based

NOTES = {
    "placed": "{n} of {all} prompts have no video part: the video is put in front of the first user text",
    "marked": f"{{n}} of {{all}} prompts mark the video's place with {PLACEHOLDER}: it is put there",
    "plain": "{n} of {all} rows hold plain text: read as one question and its answers",
    "same": "warning: in {n} of {all} pairs chosen and rejected are the same; they teach nothing",
    "empty": "warning: in {n} of {all} pairs rejected is empty",
}


class _Wrong(Exception):
    """What is wrong with a row: (field, reason)."""


def load_pairs(
    name: str, config: str | None = None, split: str = "train", say: Callable[[str], Any] = print, media: bool = False
):
    """Load, check and shape preference rows.

    Args:
        name: a dataset of this kit, any other dataset folder or Hub id, or a `.jsonl` or `.parquet` file.
        config: of the dataset; `preferences` for one of this kit.
        split: such as ``train``; a folder may hold ``SPLIT.jsonl`` or ``SPLIT.parquet``.
        say: takes a line for everything that is read in another way than it is written, and for useless pairs.
        media: videos that are not in the dataset will be found elsewhere.

    Returns:
        (a `datasets.Dataset` whose rows are in the trainer's shape, 16 hex digits that change with any text and with
        the clips' names and sizes).

    Raises:
        KitError: it cannot be loaded, lacks a column, or is empty.
        RowError: a row cannot be used; names row and field.
    """
    rows, folder = _read(name, config, split)
    clips = [column for column in CLIPS if _may_hold_clips(rows.features.get(column))]
    missing = [column for column in ("chosen", "rejected") if column not in rows.column_names]
    if not clips and not missing and not _videos_in_messages(rows):
        hint = " (rename `images` to `frames` if they are the frames of one video)"
        missing = ["video (or videos, frames)" + (hint if "images" in rows.column_names else "")]
    if missing:
        raise KitError(f"{name}: column {missing[0]} is missing; there are {', '.join(rows.column_names)}")
    if not len(rows):
        raise KitError(f"{name}: split '{split}' is empty")
    digest = _check(rows, clips, name, folder, say, media)
    keep = [column for column in (*NAMES, *clips, *TEXTS, "fps") if column in rows.column_names]
    rows = rows.select_columns(keep).add_column(NUMBER, np.arange(1, len(rows) + 1))
    return rows.with_transform(Shape(folder)), digest


class Shape:
    """Turns batches as `datasets` reads them into rows of the trainer's shape.

    Args:
        folder: that relative paths are relative to; None leaves them as they are.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """Shape the rows of one batch."""
        rows = []
        for number in range(len(batch[NUMBER])):
            row = {name: values[number] for name, values in batch.items()}
            try:
                texts, part = shape_texts(row, Counter())
                shaped = {**{name: row.get(name) for name in NAMES}, **texts, **shape_clip(row, part, self.folder)}
            except _Wrong as wrong:  # seen by the check already, unless a file has changed
                raise KitError(f"row {row[NUMBER]}: field {wrong.args[0]}: {wrong.args[1]}") from None
            if shaped["question_id"] is None:
                shaped["question_id"] = str(row[NUMBER])
            rows.append(shaped)
        return {name: [row.get(name) for row in rows] for name in {k: None for row in rows for k in row}}


def shape_texts(row: dict[str, Any], notes: Counter) -> tuple[dict[str, list[dict]], str | None]:
    """Prompt and answers of a row as messages with content parts.

    Args:
        row: as read.
        notes: counts what was read in another way than it is written, by the keys of :data:`NOTES`.

    Returns:
        (`prompt`, `chosen`, `rejected`; the path that the video part names, or None).

    Raises:
        _Wrong: naming the field.
    """
    notes["plain"] += all(isinstance(row.get(name), str) for name in TEXTS)
    chosen, rejected = (_messages(row.get(side), "assistant", side) for side in ("chosen", "rejected"))
    prompt = row.get("prompt")
    if prompt is None or chosen[0]["role"] in ("system", "user"):  # the answers hold the whole conversation
        prompt, chosen, rejected = _split(chosen, rejected)
    else:
        prompt = _messages(prompt, "user", "prompt")
    for side, answer in (("chosen", chosen), ("rejected", rejected)):
        if any(part["type"] != "text" for message in answer for part in message["content"]):
            raise _Wrong(side, "holds a video; answers are text")
    if not _text(chosen):
        raise _Wrong("chosen", "is empty")
    notes["empty"] += not _text(rejected)
    notes["same"] += chosen == rejected
    return {"prompt": (placed := _place(prompt, notes))[0], "chosen": chosen, "rejected": rejected}, placed[1]


def _messages(value: Any, role: str, field: str) -> list[dict]:
    """A field as messages with content parts and without the nulls that Arrow adds; plain text is one message."""
    value = [{"role": role, "content": value}] if isinstance(value, str) else [value] if _is_map(value) else value
    if not isinstance(value, list) or not value:
        raise _Wrong(field, "is missing" if value is None else "must be text or a list of messages")
    messages = []
    for message in value:
        if not _is_map(message) or not isinstance(message.get("role"), str):
            raise _Wrong(field, "must be text or a list of messages with `role` and `content`")
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list):
            raise _Wrong(field, "has a message whose `content` is neither text nor a list of parts")
        rest = {k: v for k, v in message.items() if v is not None and k != "content"}
        messages.append({**rest, "content": [_part(part, field) for part in parts]})
    return messages


def _part(part: Any, field: str) -> dict:
    part = {k: v for k, v in part.items() if v is not None} if _is_map(part) else {"type": "text", "text": part}
    kind = part.get("type", "text")
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "video":
        path = next((part[k] for k in ("video", "path", "url") if isinstance(part.get(k), str)), None)
        return {"type": "video"} if path is None else {"type": "video", "path": path}
    raise _Wrong(field, f"has a part of type {kind!r}; text parts and one video part are read")


def _split(chosen: list[dict], rejected: list[dict]) -> tuple[list[dict], list[dict], list[dict]]:
    """The turns that two conversations begin with, and how each goes on (as TRL's `extract_prompt`)."""
    shortest = min(len(chosen), len(rejected)) - 1
    same = next((i for i in range(shortest) if chosen[i] != rejected[i]), shortest)
    if not same or chosen[0]["role"] == "assistant":
        raise _Wrong("prompt", "is missing, and chosen and rejected do not begin with the same turns")
    return chosen[:same], chosen[same:], rejected[same:]


def _place(prompt: list[dict], notes: Counter) -> tuple[list[dict], str | None]:
    """The prompt with exactly one video part, and the path that it named."""
    users = [message for message in prompt if message["role"] == "user"]
    if not users:
        raise _Wrong("prompt", "has no user turn")
    if not any(part["type"] == "video" for message in prompt for part in message["content"]):
        for message in users:
            message["content"] = [new for part in message["content"] for new in _unmark(part)]
        marked = any(part["type"] == "video" for message in users for part in message["content"])
        notes["marked" if marked else "placed"] += 1
        if not marked:
            users[0]["content"].insert(0, {"type": "video"})
    videos = [part for message in prompt for part in message["content"] if part["type"] == "video"]
    if len(videos) > 1:
        raise _Wrong("prompt", f"has {len(videos)} videos; one video a row is read")
    return prompt, videos[0].pop("path", None)


def _unmark(part: dict) -> Iterator[dict]:
    """A text part with :data:`PLACEHOLDER` as its pieces."""
    before, *after = part["text"].split(PLACEHOLDER)
    if before or not after:
        yield {"type": "text", "text": before}
    for text in after:
        yield {"type": "video"}
        if text := text.removeprefix("\n"):
            yield {"type": "text", "text": text}


def shape_clip(row: dict[str, Any], part: str | None, folder: Path | None) -> dict[str, Any]:
    """A row's clip as `{"video": …}` or `{"frames": […]}`, its paths resolved.

    Args:
        row: with any of :data:`CLIPS`.
        part: path that the prompt's video part names, for rows without them.
        folder: that relative paths are relative to.
    """
    field = next((name for name in CLIPS if row.get(name) is not None), None)
    clip = part if field is None else row[field]
    if field == "videos":
        if isinstance(clip, list) and len(clip) != 1:
            raise _Wrong("videos", f"holds {len(clip)}; one video a row is read")
        clip = clip[0] if isinstance(clip, list) else clip
    if isinstance(clip, list):  # a list of pictures, whatever its column is called
        if not clip:
            raise _Wrong(field, "is an empty list")
        clip = [_resolve(picture, field, folder) for picture in clip]
        return {"frames": clip, **({} if row.get("fps") is None else {"fps": row["fps"]})}
    return {"video": _resolve(clip, field or "prompt", folder)}


def _resolve(value: Any, field: str, folder: Path | None) -> Any:
    """A clip or picture with its path made absolute; stored bytes need none."""
    if _is_map(value) and not value.get("bytes") and value.get("path"):
        return {**value, "path": _resolve(value["path"], field, folder)}
    if not isinstance(value, str):
        return value
    if "://" in value:
        raise _Wrong(field, f"{value} is an address; download the videos and give their paths")
    return value if folder is None else str(folder / value)


def _check(rows, clips: list[str], name: str, folder: Path | None, say: Callable[[str], Any], media: bool) -> str:
    """Go once over all texts and over the outlines of all clips; the clips' bytes are not touched."""
    notes, digest = Counter(), hashlib.sha256()
    texts = rows.select_columns([column for column in TEXTS if column in rows.column_names])
    outlines = {column: _outlines(rows, column) for column in clips}
    for number, row in enumerate(_each(texts), 1):
        row |= {column: next(outline) for column, outline in outlines.items()}
        try:
            shaped, part = shape_texts(row, notes)
            clip = shape_clip(row, part, folder)
            _check_clip(clip, next((c for c in clips if row[c] is not None), (*clips, "prompt")[0]), media)
        except _Wrong as wrong:
            raise RowError(name, number, *wrong.args) from None
        digest.update(json.dumps([shaped, part, [row[c] for c in clips]], sort_keys=True, default=str).encode())
    for note, line in NOTES.items():
        if notes[note]:
            say(line.format(n=notes[note], all=len(rows)))
    return digest.hexdigest()[:16]


def _check_clip(clip: dict[str, Any], field: str, media: bool) -> None:
    """Refuse what can be told without decoding: nothing there, no such file."""
    for item in clip.get("frames") or [clip.get("video")]:
        if isinstance(item, str) and not Path(item).exists():
            raise _Wrong(field, f"there is no file {item}")
        if item is None and not media:
            raise _Wrong(
                field, "the row has no video; give your own copies of videos that are not in the dataset with --media"
            )
        if item is not None and not isinstance(item, str | int):
            raise _Wrong(field, "is neither a video nor a list of pictures")


def _each(rows) -> Iterator[dict[str, Any]]:
    for batch in rows.iter(1000):
        yield from ({name: values[i] for name, values in batch.items()} for i in range(len(batch["chosen"])))


def _outlines(rows, column: str) -> Iterator[Any]:
    """For every row what a column of clips holds, without its bytes: None, their number, a path, or a list of these."""
    for chunk in rows.data.column(column).chunks:
        yield from _outline(chunk)


def _outline(array) -> list:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _outline(array.storage)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = iter(_outline(array.flatten()))
        return [None if n is None else [next(inner) for _ in range(n)] for n in pc.list_value_length(array).to_pylist()]
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return [n or None for n in pc.binary_length(array).to_pylist()]
    if pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
        stored, paths = (_outline(pc.struct_field(array, name)) for name in ("bytes", "path"))
        return [n or path for n, path in zip(stored, paths, strict=True)]
    if pa.types.is_null(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return array.to_pylist()
    return [object()] * len(array)  # neither: refused with the first row


def _read(name: str, config: str | None, split: str):
    """(rows with undecoded videos and pictures, folder that their paths are relative to)."""
    import datasets

    path, files = Path(name), None
    for suffix in FILES if path.is_dir() else ():
        files = files or (path / f"{split}{suffix}" if (path / f"{split}{suffix}").is_file() else None)
    if path.is_file():
        if path.suffix not in FILES:
            raise KitError(f"{name}: a dataset file must be .jsonl or .parquet")
        if split != "train":
            raise KitError(f"{name}: a file has no split '{split}'; give a folder with train.jsonl and {split}.jsonl")
        files = path
    elif not path.exists() and (path.suffix in FILES or name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise KitError(f"{name}: there is no such dataset file or folder")
    # Reading files of one's own would be reported to a download counter on the network.
    counted, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS, False
    try:
        if files is not None:
            rows = datasets.load_dataset(FILES[files.suffix], data_files=str(files), split="train")
        elif (path / "preferences").is_dir():
            from dataset_builder.loading import load_config

            rows = load_config(name, config or "preferences", split, ())
        elif (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            rows = datasets.load_from_disk(name)
            if isinstance(rows, datasets.DatasetDict):
                rows = rows[split]
            elif split != "train":
                raise KitError(f"{name}: was saved as one split; there is no '{split}' in it")
        else:
            rows = datasets.load_dataset(name, config, split=split)
    except KitError:
        raise
    except Exception as error:  # datasets raises many kinds here; the first line says which part is missing
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise KitError(f"{name}: cannot load split '{split}': {reason}") from None
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counted
    for column, feature in rows.features.items():
        inner = getattr(feature, "feature", feature)
        if isinstance(inner, datasets.Video | datasets.Image) and inner.decode:
            bare = type(inner)(decode=False)
            rows = rows.cast_column(column, bare if inner is feature else type(feature)(bare))
    return rows, path.resolve() if path.is_dir() else files.resolve().parent if files is not None else None


def _videos_in_messages(rows) -> bool:
    """Whether the first row's prompt names its video itself, as `{"type": "video", "video": PATH}`."""
    row = next(_each(rows.select_columns([c for c in TEXTS if c in rows.column_names])), {})
    try:
        return shape_texts(row, Counter())[1] is not None
    except _Wrong:
        return False


def _may_hold_clips(feature) -> bool:
    """Whether a column is there and more than a number: `frames` is a count in some datasets."""
    kind = getattr(feature, "dtype", None)  # struct-like features have the types of their parts
    return feature is not None and not (isinstance(kind, str) and kind.startswith(("int", "uint", "float", "bool")))


def _text(messages: list[dict]) -> str:
    return "".join(part.get("text", "") for message in messages for part in message["content"]).strip()


def _is_map(value: Any) -> bool:
    return isinstance(value, dict)
