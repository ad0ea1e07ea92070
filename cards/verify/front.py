"""The YAML block of a dataset card against the files: rows, sizes, content hashes, licence."""

from __future__ import annotations

import hashlib
import re

from cards.verify.checks import Checks
from cards.verify.rows import Rows


def check_front(checks: Checks, rows: Rows) -> None:
    """Check ``configs``, ``dataset_info``, ``size_categories``, ``license`` and ``license_name``."""
    from cards.dataset_card import size_category
    from cards.hub_fields import hub_license, license_name
    from dataset_builder.mmaip_v import content_key

    front, splits = checks.page.front, rows.splits()
    hashes = {
        str(p.relative_to(rows.folder)): p for name in rows.configs for p in (rows.folder / name).glob("*.parquet")
    }
    files = {path: {"sha256": _sha256(file)} for path, file in sorted(hashes.items())}
    names = [entry.get("config_name") for entry in front.get("configs") or []]
    checks.value("configs with files", sorted(map(str, names)), sorted(rows.configs))
    for entry in front.get("configs") or []:
        if found := re.search(r"Content (\w+)\.", entry.get("description") or ""):
            checks.value(f"content of {entry['config_name']}", found[1], content_key(files, entry["config_name"]))
    for info in front.get("dataset_info") or []:
        name, stated = info["config_name"], info.get("splits") or []
        shown = {split["name"]: split.get("num_examples") for split in stated}
        for split in sorted({*shown, *splits.get(name, {})}):
            checks.value(f"dataset_info: rows of {name}, {split}", shown.get(split), splits.get(name, {}).get(split))
        size = sum(file.stat().st_size for path, file in hashes.items() if path.startswith(f"{name}/"))
        checks.value(f"dataset_info: bytes to download, {name}", info.get("download_size"), size)
        total = sum(split.get("num_bytes") or 0 for split in stated)
        checks.value(f"dataset_info: sum of the splits' bytes, {name}", info.get("dataset_size"), total)
        why = "bytes of the tables in memory, as the writer laid them out"
        checks.unchecked(f"dataset_info: bytes of {name}", f"{total:,}", why)
    if "size_categories" in front:
        checks.value("size_categories", front["size_categories"], [size_category(rows.counts["pairs"])])
    licences = [name for (name,) in rows.all("SELECT DISTINCT license FROM questions WHERE license <> ''")]
    if "license" in front:
        checks.value("license", front["license"], hub_license(sorted(licences)))
    if "license_name" in front:
        checks.value("license_name", front["license_name"], license_name(sorted(licences)))


def _sha256(path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
