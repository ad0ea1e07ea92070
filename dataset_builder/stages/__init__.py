"""The stages that cost time and money, sampling and judging: what they store, and who runs them."""

from dataset_builder.stages.store import (
    SHARD_SCHEMA,
    ShardStore,
    canonical_json,
    fingerprint,
    fsync_folder,
    write_atomic,
    write_json,
)

__all__ = [
    "SHARD_SCHEMA",
    "ShardStore",
    "canonical_json",
    "fingerprint",
    "fsync_folder",
    "write_atomic",
    "write_json",
]
