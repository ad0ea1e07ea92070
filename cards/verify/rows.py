"""The rows of a released dataset, and its figures computed from them with SQL: nothing here reads a stored figure.

Settings of the build (weights of the judges, the rule of the selection) come from ``provenance.json``: they are what
was asked for, not what was measured.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

from dataset_builder.errors import KitError

CONFIGS = ("preferences", "benchmark", "responses", "questions")
# Judges' values of an answer (0–1): the mean of a judge's criteria, each by its declared range.
_VALUES = """
    SELECT response_id, question_id, split, model, s.judge AS judge,
           CASE WHEN count(*) = count(s.score) THEN avg((s.score - s.low) / (s.high - s.low)) END AS value
    FROM (SELECT response_id, question_id, split, model, unnest(scores) AS s FROM responses)
    GROUP BY ALL
"""


class Rows:
    """A dataset's Parquet files as tables of DuckDB, with the split of each row in a column of its own.

    Args:
        folder: of the dataset.

    Raises:
        KitError: a config's files are missing or cannot be read.
    """

    def __init__(self, folder: Path):
        import duckdb

        self.folder = Path(folder)
        self.sql = duckdb.connect()
        self.sql.execute("SET enable_progress_bar = false")
        self.configs = [name for name in CONFIGS if any((self.folder / name).glob("*.parquet"))]
        for name in ("responses", "questions"):
            if name not in self.configs:
                raise KitError(f"{folder}: has no {name}/*.parquet, so there are no rows to compute its figures from")
        for name in self.configs:
            files = str(self.folder / name / "*.parquet").replace("'", "''")
            split = "split_part(parse_filename(filename), '-', 1)"
            try:
                columns = self.sql.execute(f"SELECT * FROM '{files}' LIMIT 0").description
                wanted = ", ".join(f'"{column[0]}"' for column in columns if column[0] != "video")
                read = f"read_parquet('{files}', filename = true)"
                self.sql.execute(f"CREATE VIEW {name} AS SELECT {wanted}, {split} AS split FROM {read}")
            except duckdb.Error as error:
                raise KitError(f"{self.folder / name}: cannot be read: {str(error).splitlines()[0]}") from None
        try:
            self.sql.execute(f"CREATE TABLE judged AS {_VALUES}")
        except duckdb.Error as error:
            raise KitError(f"{self.folder / 'responses'}: cannot be read: {str(error).splitlines()[0]}") from None

    def all(self, query: str, *values: object) -> list[tuple]:
        """Rows of a query."""
        return self.sql.execute(query, list(values)).fetchall()

    def dicts(self, query: str) -> list[dict]:
        """Rows of a query by the names of its columns."""
        found = self.sql.execute(query)
        names = [column[0] for column in found.description]
        return [dict(zip(names, row)) for row in found.fetchall()]

    def one(self, query: str, *values: object):
        """The only value of a query."""
        return self.sql.execute(query, list(values)).fetchone()[0]

    @cached_property
    def provenance(self) -> dict:
        """``provenance.json``, for settings; empty without one."""
        path = self.folder / "provenance.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @cached_property
    def weights(self) -> dict[str, float]:
        """Weight of each judge that is named."""
        rules = self.provenance.get("rules", {}).get("weights")
        return rules or {judge["name"]: float(judge["weight"]) for judge in self.provenance.get("judges", [])}

    @property
    def has_pairs(self) -> bool:
        """Whether the dataset has preferences."""
        return "preferences" in self.configs

    @cached_property
    def counts(self) -> dict[str, int]:
        """Clips, questions, answers, pairs."""
        return {
            "clips": self.one("SELECT count(DISTINCT video_id) FROM questions"),
            "questions": self.one("SELECT count(*) FROM questions"),
            "answers": self.one("SELECT count(*) FROM responses"),
            "pairs": self.one("SELECT count(*) FROM preferences") if self.has_pairs else 0,
        }

    def splits(self) -> dict[str, dict[str, int]]:
        """Rows by config and split."""
        return {
            name: dict(self.all(f"SELECT split, count(*) FROM {name} GROUP BY split")) if name in self.configs else {}
            for name in CONFIGS
        }

    def zoo(self) -> list[dict]:
        """Each member: name, revisions, answers, mean score, chosen, rejected, share of its pairs that it won."""
        pairs = "preferences" if self.has_pairs else "(SELECT '' AS model_chosen, '' AS model_rejected LIMIT 0)"
        found = self.all(f"""
            SELECT model, list(DISTINCT model_revision), count(*), avg(score),
                   (SELECT count(*) FROM {pairs} p WHERE p.model_chosen = r.model),
                   (SELECT count(*) FROM {pairs} p WHERE p.model_rejected = r.model)
            FROM responses r GROUP BY model ORDER BY model
        """)
        names = ("name", "revisions", "answers", "score", "chosen", "rejected")
        members = [dict(zip(names, row)) for row in found]
        for member in members:
            played = member["chosen"] + member["rejected"]
            member["win_rate"] = member["chosen"] / played if played else None
        return members

    def decoding(self) -> dict[str, dict[str, list]]:
        """Every value of each decoding setting by member."""
        found: dict[str, dict[str, list]] = {}
        for model, text in self.all("SELECT DISTINCT model, sampling FROM responses ORDER BY ALL"):
            for key, value in (json.loads(text) if text else {}).items():
                values = found.setdefault(model, {}).setdefault(key, [])
                if value not in values:
                    values.append(value)
        return found

    def judges(self) -> dict[str, dict]:
        """Each judge: criteria with ranges, revisions, settings, scores given and failed."""
        found: dict[str, dict] = {}
        for judge, criterion, low, high, revision, settings, given, failed in self.all("""
            SELECT s.judge, s.criterion, s.low, s.high, s.judge_revision, s.settings_hash, count(s.score),
                   count(*) - count(s.score)
            FROM (SELECT unnest(scores) AS s FROM responses) GROUP BY ALL ORDER BY ALL
        """):
            entry = found.setdefault(
                judge, {"criteria": [], "revisions": set(), "settings": set(), "scores": 0, "errors": 0}
            )
            words = f"{criterion} ({low:g}–{high:g})"
            entry["criteria"] += [words] if words not in entry["criteria"] else []
            entry["revisions"].add(revision)
            entry["settings"].add(settings)
            entry["scores"] += given
            entry["errors"] += failed
        return found

    def margins(self) -> dict[str, float] | None:
        """Smallest, median and mean margin; None without any."""
        if not self.has_pairs:
            return None
        found = self.all("SELECT min(margin), median(margin), avg(margin), count(margin) FROM preferences")[0]
        return dict(zip(("smallest", "median", "mean"), found)) if found[3] else None

    def disagreement(self) -> float | None:
        """Highest minus lowest judge, mean over the answers that two or more judges scored."""
        return self.one("""
            SELECT avg(spread) FROM (
                SELECT max(value) - min(value) AS spread FROM judged GROUP BY response_id HAVING count(value) > 1)
        """)

    @cached_property
    def pairs(self) -> list[dict]:
        """The pairs: ids, models, scores, margin, question, reference, and the texts ``chosen`` and ``rejected``."""
        if not self.has_pairs:
            return []
        sides = ", ".join(f"coalesce({last_text(side)}, '') AS {side}" for side in ("chosen", "rejected"))
        return self.dicts(f"""
            SELECT question_id, response_id_chosen, response_id_rejected, video_id, question, answer, model_chosen,
                   model_rejected, score_chosen, score_rejected, margin, {sides}
            FROM preferences
        """)

    @cached_property
    def questions(self) -> list[dict]:
        """The questions: id, type, video, source, licence."""
        return self.dicts("SELECT question_id, question_type, video_id, source, license, split FROM questions")

    @cached_property
    def answers(self) -> list[dict]:
        """All answers with their scores."""
        return [row for rows in self.by_question.values() for row in rows]

    @cached_property
    def train_answers(self) -> dict[str, list[dict]]:
        """The answers of each question of the train split."""
        train = {row["question_id"] for row in self.questions if row["split"] == "train"}
        return {question: rows for question, rows in self.by_question.items() if question in train}

    def lengths(self):
        """Characters of the chosen and of the rejected answers of all pairs, two arrays [pairs]."""
        import numpy as np

        lengths = np.array([(len(p["chosen"]), len(p["rejected"])) for p in self.pairs], dtype=np.int64)
        return lengths.reshape(-1, 2)[:, 0], lengths.reshape(-1, 2)[:, 1]

    @cached_property
    def by_question(self) -> dict[str, list[dict]]:
        """The answers of each question with their scores."""
        found: dict[str, list[dict]] = {}
        columns = ("question_id", "response_id", "response", "flags", "scores", "score", "model", "model_revision")
        columns += ("video_id", "split")
        for row in self.dicts(f"SELECT {', '.join(columns)} FROM responses"):
            found.setdefault(row["question_id"], []).append({**row, "flags": row["flags"] or []})
        return found


def last_text(column: str) -> str:
    """SQL for the text of a column's last message."""
    return f"array_to_string([part.text for part in {column}[-1].content], '')"
