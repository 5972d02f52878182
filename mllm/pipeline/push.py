"""Pushes an adapter, a merged model or GGUF files to the Hugging Face Hub: weights and card, never data.

python mllm/pipeline/push.py --folder exp/X/latest/adapter --repo ORG/NAME --dry-run
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.errors import ConfigError
from mllm.pipeline.command import command_parser, run_command

if TYPE_CHECKING:
    from mllm.export.hub import Parcel

logger = logging.getLogger("mllm.pipeline.push")


def main(argv: Sequence[str]) -> int:
    """Lists what would be pushed, or pushes it and prints where it lies."""
    arguments = parse(argv)
    from mllm.export.hub import pack

    parcel = pack(Path(arguments.folder), arguments.base)
    _check_name(arguments.repo)
    if arguments.dry_run:
        print(listing(parcel, arguments.repo, arguments.public))
        return 0
    print(push(parcel, arguments.repo, public=arguments.public, message=arguments.message))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = command_parser("push", "Push an adapter, a merged model or GGUF files to the Hugging Face Hub.")
    parser.add_argument("--folder", required=True, help="an adapter/ or merged/ folder, or one of GGUF files")
    parser.add_argument("--repo", required=True, help="where it goes: ORG/NAME")
    parser.add_argument("--base", help="the base's name on the Hub, where the folder names one of this machine")
    parser.add_argument("--public", action="store_true", help="let everybody see it; private otherwise")
    parser.add_argument("--message", default="Add model", help="the message of the commit")
    parser.add_argument("--dry-run", action="store_true", help="list the files with their sizes and push nothing")
    return parser.parse_args(argv)


def listing(parcel: Parcel, repo: str, public: bool) -> str:
    """What would be pushed, line by line with sizes in bytes, and what would not."""
    sizes = {name: parcel.size(name) for name in parcel.files}
    width = max(len(f"{size:,}") for size in sizes.values())
    lines = [f"{size:>{width},}  {name}" for name, size in sizes.items()]
    total = f"{sum(sizes.values()):,} bytes in {len(sizes)} files"
    lines.append(f"{total} would go to https://huggingface.co/{repo} ({'public' if public else 'private'})")
    if parcel.kept:
        lines.append(f"not pushed: {', '.join(parcel.kept)}")
    return "\n".join(lines)


def push(parcel: Parcel, repo: str, *, public: bool = False, message: str = "Add model") -> str:
    """Makes the repository where there is none, and adds the files in one commit; gives the repository's address.

    Raises `ConfigError` without a login, for what the Hub refuses, and where `repo` is public but not to be so.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if get_token() is None:
        raise ConfigError("you are not logged in to the Hugging Face Hub: run `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    operations = [
        CommitOperationAdd(name, source if isinstance(source, bytes) else str(source))
        for name, source in parcel.files.items()
    ]
    try:
        address = api.create_repo(repo, private=not public, exist_ok=True)
        if not public and not api.repo_info(repo).private:
            raise ConfigError(f"{address} is public: give --public to push to it, or choose another --repo")
        api.create_commit(repo, operations, commit_message=message)
    except (HfHubHTTPError, OfflineModeIsEnabled, ConnectionError) as error:
        raise ConfigError(f"nothing was pushed to {repo}: {' '.join(str(error).split())}") from error
    logger.info("%d files pushed", len(operations))
    return str(address)


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"--repo {repo} is no name on the Hub: {error}") from error
    if "/" not in repo:
        raise ConfigError(f"--repo {repo} has no owner: give ORG/NAME")


if __name__ == "__main__":
    sys.exit(run_command(main))
