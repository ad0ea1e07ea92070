"""What a configuration may say, one dataclass a block, and how it is read: a typo is one clear line."""

from dataset_builder.settings.config import SPLITS, BuildConfig, SplitConfig, load_build_config, parse_judge
from dataset_builder.settings.judges import (
    ConfirmConfig,
    HoundJudgeConfig,
    JudgeConfig,
    ReferenceJudgeConfig,
    VideoChatGPTJudgeConfig,
    VisualJudgeConfig,
    VLMJudgeConfig,
    VQAJudgeConfig,
)
from dataset_builder.settings.selection import DecontaminationConfig, DedupConfig, PairsConfig
from dataset_builder.settings.sources import (
    ActivityNetQASource,
    FolderSource,
    GeneratedSource,
    HubSource,
    PreferenceSource,
    ShareGPTSource,
    Source,
    VideoChatGPTSource,
)
from dataset_builder.settings.strict_yaml import from_dict, load_yaml, near, read_yaml
from dataset_builder.settings.zoo import DecodingConfig, EndpointConfig, Member, PriceConfig

__all__ = [
    "SPLITS",
    "ActivityNetQASource",
    "BuildConfig",
    "ConfirmConfig",
    "DecodingConfig",
    "DecontaminationConfig",
    "DedupConfig",
    "EndpointConfig",
    "FolderSource",
    "GeneratedSource",
    "HoundJudgeConfig",
    "HubSource",
    "JudgeConfig",
    "Member",
    "PairsConfig",
    "PreferenceSource",
    "PriceConfig",
    "ReferenceJudgeConfig",
    "ShareGPTSource",
    "Source",
    "SplitConfig",
    "VLMJudgeConfig",
    "VQAJudgeConfig",
    "VideoChatGPTJudgeConfig",
    "VideoChatGPTSource",
    "VisualJudgeConfig",
    "from_dict",
    "load_build_config",
    "load_yaml",
    "near",
    "parse_judge",
    "read_yaml",
]
