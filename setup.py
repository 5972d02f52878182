"""Packaging of `mllm-medical`, the distribution of the package `mllm`; on PyPI, `mllm` is another project."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

# Lower bounds only: older versions lack something that is used. scripts/constraints.txt lists the tested versions.
CORE = [
    "torch>=2.6",  # required by transformers 5
    "torchvision>=0.21",  # the version for torch 2.6, with which it must be installed
    "transformers>=5.18",
    "peft>=0.20",  # required by the adapter code of transformers
    "accelerate>=1.3",  # the Trainer of transformers calls it so
    "bitsandbytes>=0.46.1",  # required by the quantization of transformers
    "mmengine>=0.10.4",
    "timm>=1.0.23",  # the vision tower of Gemma 3n
    "numpy>=1.26",
    "pillow>=10.1",  # includes a font of any size
    "pycocotools>=2.0.8",  # the first version that supports numpy 2
    "safetensors>=0.5",
    "sentencepiece>=0.2",
    "typing-extensions>=4.10",
    "protobuf>=4.25",  # reads a tokenizer.model without a tokenizer.json
    "tqdm>=4.66",
    "psutil>=5.9",
    "matplotlib>=3.8",
    "jinja2>=3.1",
    "tensorboard>=2.16",
]

EXTRAS = {
    "dicom": ["pydicom>=3.0.1", "python-gdcm>=3.0.24", "pylibjpeg>=2.0", "pylibjpeg-openjpeg>=2.3", "pyjpegls>=1.4"],
    "nifti": ["nibabel>=5.2"],
    "video": ["av>=12"],
    "privacy": ["opacus>=1.5.2"],
    "gguf": ["gguf>=0.18"],
    "text": ["datasets>=3.0", "py3langid>=0.3"],
    "evaluation": [
        "sacrebleu>=2.4",
        "rouge-score>=0.1.2",
        "pycocoevalcap>=1.2",
        "scikit-learn>=1.5",
        "monai>=1.5",  # the first version that supports numpy 2
    ],
}
EXTRAS["all"] = sorted(requirement for extra in EXTRAS.values() for requirement in extra)
EXTRAS |= {
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.5",
        "hypothesis>=6.100",
        "ruff>=0.9",
        "mypy>=1.11",
        "dp-accounting>=0.4.4",
        "openai>=1.60",
        "selenium>=4.20",  # includes no browser: the test of the page is skipped without Chromium
        "trackio>=0.21.1",
    ],
    "serve": ["fastapi>=0.115", "uvicorn>=0.30", "python-multipart>=0.0.12", "gradio>=6"],
    "notebook": ["ipywidgets>=8.1", "ipykernel>=6.29", "nbclient>=0.10"],
    "bench": ["trl>=1.16"],
    "parity": ["llama-cpp-python>=0.3.36"],
    "jax": ["orbax-checkpoint>=0.12.3 ; python_version >= '3.11'"],
    # The Flax model of T5Gemma, with which tests compare. It needs TensorFlow, and kagglehub without requiring it.
    "jax-reference": ["gemma>=3.3 ; python_version >= '3.11'", "kagglehub>=0.3 ; python_version >= '3.11'"],
    "deepspeed": ["deepspeed>=0.16"],
    "liger": ["liger-kernel>=0.8 ; sys_platform == 'linux'"],
}

setup(
    name="mllm-medical",
    version="0.1.0",
    description="Fine-tune multimodal language models on medical images. For research only; not for clinical use.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_namespace_packages(include=["mllm", "mllm.*"], exclude=["*.__pycache__"]),
    package_data={
        "*": ["published.json"],
        "mllm.report": ["tested_families.json", "templates/*"],
        "mllm.ui": ["page.css", "page.js", "templates/*"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["mllm = mllm.pipeline.cli:run"]},
)
