"Package metadata and requirements, read from `settings.ini`, their one source."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser()
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
statuses = {'3': 'Development Status :: 3 - Alpha', '4': 'Development Status :: 4 - Beta',
            '5': 'Development Status :: 5 - Production/Stable'}

setup(
    version=cfg['version'],
    description=cfg['description'],
    keywords=cfg['keywords'].split(),
    author=cfg['author'],
    license=cfg['license'],
    classifiers=[statuses[cfg['status']], 'Intended Audience :: Developers', 'Programming Language :: Python :: 3'],
    packages=find_packages(include=['blurlike', 'blurlike.*']),
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg['requirements'].split(),
    extras_require={k.removesuffix('_requirements'): v.split() for k,v in cfg.items() if k.endswith('_requirements')},
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
)
