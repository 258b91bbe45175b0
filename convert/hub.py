"""Downloading from the Hugging Face hub: of a model's files only those that conversion reads."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from sdjax.convert.directory import CONFIG, choose_weights, component_alone, has_weights, sort_components
from sdjax.errors import CheckpointError, InputError, SdjaxError
from sdjax.files.layout import CHECKER, INDEX, nearest, read_json


def download(
    repo: str, variant: str | None, revision: str | None, small: bool = False, checker: bool = True
) -> tuple[Path, str]:
    """Downloads a diffusers model into the hub's own cache; its folder there, and the commit that it is.

    small: whether its configurations and its tokenizers are enough. checker: whether its safety checker is wanted.
    Without a network, what that cache holds of the model is taken. Raises InputError when there is no such model or
    revision or the hub cannot be reached, CheckpointError when it is not a diffusers model or the download breaks off.
    """
    try:
        try:
            info = HfApi().model_info(repo, revision=revision)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            raise
        except Exception as error:  # whatever the HTTP client raises for a network that is not there
            folder = _downloaded_before(repo, revision, error)
        else:
            files = _needed(repo, revision, [file.rfilename for file in info.siblings or []], variant)
            if not checker:
                files = [name for name in files if not name.startswith(f"{CHECKER}/")]
            if small:
                files = [name for name in files if name.endswith((".json", ".txt"))]
            # By the name of the revision, not by its commit: so the hub's cache can tell later what the name stood for.
            folder = Path(snapshot_download(repo, revision=revision, allow_patterns=files))
    except SdjaxError:
        raise
    except Exception as error:
        raise _explain(error, repo, revision) from error
    return folder, folder.name  # the hub's cache names the folder of a snapshot after its commit


def download_file(repo: str, name: str, advice: str, revision: str | None = None) -> Path:
    """One file of a repository, from the hub or its cache. InputError, which ends with `advice`, where it fails."""
    try:
        return Path(hf_hub_download(repo, name, revision=revision))
    except Exception as error:  # whatever the HTTP client raises for a network that is not there
        raise InputError(f"{name} of {repo} could not be downloaded ({type(error).__name__}): {advice}") from error


def needed_files(names: list[str], index: Mapping[str, Any], variant: str | None, repo: str) -> list[str]:
    """Of all the files of a repository, those that conversion reads, given its model_index.json and the variant."""
    models, copied = sort_components(index, Path(repo))
    inside: dict[str, list[str]] = {folder: [] for folder in (*models, *copied)}
    for name in map(PurePosixPath, names):
        if len(name.parts) == 2 and name.parts[0] in inside:
            inside[name.parts[0]].append(name.name)
    if not has_weights(inside.get(CHECKER, [])):
        models.pop(CHECKER, None)
    needed = [INDEX]
    for component, kind in choose_weights({model: inside[model] for model in models}, variant, repo).items():
        needed += [f"{component}/{file}" for file in ("config.json", *kind.files(inside[component]))]
    for folder in copied:
        needed += [f"{folder}/{file}" for file in inside[folder] if file.endswith((".json", ".txt"))]
    return needed


def _needed(repo: str, revision: str | None, names: list[str], variant: str | None) -> list[str]:
    if INDEX not in names and CONFIG in names:
        component_alone(read_json(Path(hf_hub_download(repo, CONFIG, revision=revision))), repo)
        inside = [name for name in names if "/" not in name]
        return [CONFIG, *choose_weights({"network": inside}, variant, repo)["network"].files(inside)]
    if INDEX not in names:
        raise CheckpointError(f"{repo} on the hub is not in diffusers layout: it has no {INDEX}")
    index = read_json(Path(hf_hub_download(repo, INDEX, revision=revision)))
    return needed_files(names, index, variant, repo)


def _downloaded_before(repo: str, revision: str | None, reason: Exception) -> Path:
    for name in (INDEX, CONFIG):
        with suppress(Exception):
            return Path(hf_hub_download(repo, name, revision=revision, local_files_only=True)).parent
    raise InputError(
        f"there is no directory {repo}, and the Hugging Face hub cannot be reached to look for such a model "
        f"({type(reason).__name__}); {nearest(repo)}"
    ) from reason


def _explain(error: Exception, repo: str, revision: str | None) -> SdjaxError:
    """What went wrong with the hub, and what to do about it."""
    if isinstance(error, GatedRepoError):  # a kind of RepositoryNotFoundError
        return InputError(f"{repo} is gated: accept its terms at https://huggingface.co/{repo} and run `hf auth login`")
    if isinstance(error, RepositoryNotFoundError):
        return InputError(
            f"there is no directory {repo}, and no such model on the hub (private ones need `hf auth login`); "
            f"{nearest(repo)}"
        )
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"{repo} has no revision {revision!r} on the hub")
    return CheckpointError(f"{repo} could not be downloaded ({type(error).__name__}): run it again to resume")
