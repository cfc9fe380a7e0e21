"""A finished run on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from pluralpref.errors import ConfigError, PluralPrefError
from pluralpref.inference.config import MixDPOConfig

_OPTIONS = ("hub_model_id", "hub_token", "hub_private_repo", "hub_revision")


class HubUpload:
    """``--push_to_hub``: the policy with its card, and the strength model, when training has ended.

    Nothing else of the run's folder leaves the machine: its margins and logs may say what the data does. transformers would
    upload the whole folder.

    :param config: with ``push_to_hub``.
    :raises ConfigError: for options that have no effect, and when the hub doesn't let a repository be made: before training
        rather than after it.
    """

    def __init__(self, config: MixDPOConfig) -> None:
        for name in ("hub_strategy", "hub_always_push"):
            default = MixDPOConfig.__dataclass_fields__[name].default
            if getattr(config, name) != default:
                raise ConfigError(f"--{name} has no effect: --push_to_hub uploads once, when training has ended")
        self._api = HfApi(token=config.hub_token)
        self._revision = config.hub_revision
        name = config.hub_model_id or Path(str(config.output_dir)).resolve().name
        try:
            self.repo_id = self._api.create_repo(name, private=config.hub_private_repo, exist_ok=True).repo_id
        except Exception as error:  # among them those of the client's HTTP library, which differ between versions
            raise ConfigError(
                f"--push_to_hub: can't make or find {name!r} on the hub ({_line(error)}). Log in with 'hf auth login' or give "
                "--hub_token, check --hub_model_id, or leave --push_to_hub out"
            ) from error

    def __call__(self, policy: Path, strength: Path) -> str:
        """Upload; returns the address.

        :raises PluralPrefError: when it fails; the run is complete on disk.
        """
        options: dict[str, Any] = {"repo_id": self.repo_id, "revision": self._revision}
        try:
            self._api.upload_folder(folder_path=policy, commit_message="Policy", **options)
            self._api.upload_folder(
                folder_path=strength, path_in_repo="strength", commit_message="Preference strength", **options
            )
        except Exception as error:  # as above
            raise PluralPrefError(
                f"the upload to {self.repo_id} failed ({_line(error)}). The run is complete: upload {policy} and {strength} "
                f"with 'hf upload {self.repo_id} FOLDER'"
            ) from error
        return f"{self._api.endpoint}/{self.repo_id}"


def refuse_idle_options(config: MixDPOConfig) -> None:
    """Refuse options of the hub without ``push_to_hub``.

    :raises ConfigError: naming the option.
    """
    given = [name for name in _OPTIONS if getattr(config, name) is not None]
    if given:
        raise ConfigError(f"--{given[0]} has no effect without --push_to_hub")


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
