from setuptools import find_packages, setup

setup(
    name='bigvlm',
    version='0.1.0',
    description='Pre-training of vision-language models at scale in JAX/Flax',
    long_description=open('README.md', encoding='utf-8').read(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=find_packages(include=['bigvlm', 'bigvlm.*']),
    install_requires=[
        'absl-py',
        'array-record',
        'einops',
        'flatbuffers',  # jax.export's files
        'flax>=0.12',
        'ftfy',
        'google-crc32c',
        'importlib_resources',  # tensorflow-datasets imports it and does not declare it
        'jax>=0.10',
        'ml_collections>=1.0',
        'ml_dtypes',
        'msgpack',
        'numpy',
        'obstore',  # gs://, s3://, http://
        'optax>=0.2.6',
        'orbax-checkpoint>=0.11.20',
        'pillow>=10.1',
        'regex',
        'safetensors>=0.8',
        'scipy',
        'sentencepiece',
        'simplejpeg',
        'tensorflow-datasets>=4.9.9',
        'tokenizers',  # WordPiece, and other libraries' tokenizers; brings huggingface_hub
        'tqdm',
    ],
    extras_require={
        'cuda': ['jax[cuda12]'],
        'tpu': ['jax[tpu]'],
        'parity': ['torch==2.13.0', 'torchvision==0.28.0', 'open_clip_torch==3.3.0', 'transformers'],  # what tests compare with
        'plan': ['jax[tpu]'],
        'log': ['tensorboardX', 'wandb'],
        'opencv': ['opencv-python-headless'],
        'parquet': ['pyarrow'],
        'dev': ['hypothesis', 'opencv-python-headless', 'pyarrow', 'pytest>=8', 'pytest-xdist', 'scikit-learn', 'tensorboardX'],
    },
)
