"""Command `mllm push`: upload an adapter, a merged model or GGUF files to the Hugging Face Hub.

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
    from mllm.export.hub import Upload

logger = logging.getLogger("mllm.pipeline.push")


def main(argv: Sequence[str]) -> int:
    """List the files of the upload, or upload them and print the address of the repository."""
    arguments = parse(argv)
    from mllm.export.hub import prepare_upload

    upload = prepare_upload(Path(arguments.folder), arguments.base)
    _check_name(arguments.repo)
    if arguments.dry_run:
        print(file_list(upload, arguments.repo, arguments.public))
        return 0
    print(push(upload, arguments.repo, public=arguments.public, message=arguments.message))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser("push", "Upload an adapter, a merged model or GGUF files to the Hugging Face Hub.")
    parser.add_argument("--folder", required=True, help="an adapter/ or merged/ folder, or a folder of GGUF files")
    parser.add_argument("--repo", required=True, help="the repository: ORG/NAME")
    parser.add_argument("--base", help="name of the base model on the Hub, if the folder names a local one")
    parser.add_argument("--public", action="store_true", help="create a public repository (default: private)")
    parser.add_argument("--message", default="Add model", help="message of the commit")
    parser.add_argument("--dry-run", action="store_true", help="list the files with their sizes and upload nothing")
    return parser.parse_args(argv)


def file_list(upload: Upload, repo: str, public: bool) -> str:
    """Return the files with their sizes in bytes, one per line, and the files that are left out."""
    sizes = {name: upload.size(name) for name in upload.files}
    width = max(len(f"{size:,}") for size in sizes.values())
    lines = [f"{size:>{width},}  {name}" for name, size in sizes.items()]
    total = f"{sum(sizes.values()):,} bytes in {len(sizes)} files"
    lines.append(f"{total} would go to https://huggingface.co/{repo} ({'public' if public else 'private'})")
    if upload.left_out:
        lines.append(f"not pushed: {', '.join(upload.left_out)}")
    return "\n".join(lines)


def push(upload: Upload, repo: str, *, public: bool = False, message: str = "Add model") -> str:
    """Upload the files in one commit and return the address of the repository, which is created if it is absent.

    Raises `ConfigError` without a login, if the Hub refuses the upload, and if `repo` is public without `public`.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if get_token() is None:
        raise ConfigError("you are not logged in to the Hugging Face Hub: run `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    operations = [
        CommitOperationAdd(name, source if isinstance(source, bytes) else str(source))
        for name, source in upload.files.items()
    ]
    try:
        address = api.create_repo(repo, private=not public, exist_ok=True)
        if not public and not api.repo_info(repo).private:
            raise ConfigError(f"{address} is public: pass --public to push to it, or choose another --repo")
        api.create_commit(repo, operations, commit_message=message)
    except (HfHubHTTPError, OfflineModeIsEnabled, ConnectionError) as error:
        raise ConfigError(f"nothing was pushed to {repo}: {' '.join(str(error).split())}") from error
    logger.info("%d files pushed", len(operations))
    return str(address)


def _check_name(repo: str) -> None:
    """Raise `ConfigError` if `repo` is not a valid name with an owner."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"--repo {repo} is not a valid name on the Hub: {error}") from error
    if "/" not in repo:
        raise ConfigError(f"--repo {repo} has no owner: pass ORG/NAME")


if __name__ == "__main__":
    sys.exit(run_command(main))
